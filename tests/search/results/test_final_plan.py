"""The fit of the final test's trainings to the time that is left."""

import dataclasses
import math
import time

import pytest

from search.results.final_plan import (
    SELECTION_SHARE,
    START_S,
    TIME_SHARE,
    FinalCosts,
    FinalPlan,
    fit_to_time,
)
from search.results.final_time import Schedule

#: One slot; an epoch takes 10 s; nothing but trainings takes time.
COSTS = FinalCosts("train", 1, 0, 10.0, 12.0, 0.0, 0.0, 0.0)
PLAN = FinalPlan(finalists=3, seeds=2, epochs=20, ensemble=5)


def left(trainings: int, epochs: int, epoch_s: float = 10.0) -> float:
    """Return the seconds that are left if these trainings are to fit exactly."""
    return trainings * (START_S + epochs * epoch_s) / TIME_SHARE + 1e-6


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [
        (left(6, 20), FinalPlan(3, 2, 20, 5)),  # as planned
        (left(6, 15), FinalPlan(3, 2, 15, 5)),  # fewer epochs,
        (left(6, 10), FinalPlan(3, 2, 10, 5)),  # down to half,
        (left(5, 10), FinalPlan(3, 1, 16, 5)),  # then fewer seeds, and epochs for what that leaves,
        (left(3, 10), FinalPlan(3, 1, 10, 5)),
        (left(2, 10), FinalPlan(2, 1, 10, 5)),  # then fewer finalists,
        (left(1, 10), FinalPlan(1, 1, 10, 5)),
        (left(1, 4), FinalPlan(1, 1, 4, 5)),  # then epochs below half
        (1.0, FinalPlan(1, 1, 1, 5)),  # always one training of one epoch
        (left(6, 25), FinalPlan(3, 2, 25, 5)),  # more epochs,
        (left(6, 30), FinalPlan(3, 2, 30, 5)),  # up to 1.5 times,
        (left(9, 30), FinalPlan(3, 3, 30, 5)),  # then more seeds,
        (1e9, FinalPlan(3, 3, 30, 5)),  # up to three
    ],
)
def test_plans_by_the_time_that_is_left(left_s, expected):
    plan = fit_to_time(PLAN, left_s, COSTS)
    assert plan == expected
    assert COSTS.forecast_s(plan) <= TIME_SHARE * left_s or plan == FinalPlan(1, 1, 1, 5)


def test_more_seeds_are_only_trained_for_an_ensemble():
    assert fit_to_time(FinalPlan(1, 1, 20, 1), 1e9, COSTS) == FinalPlan(1, 1, 30, 1)
    assert fit_to_time(FinalPlan(1, 5, 20, 5), 1e9, COSTS) == FinalPlan(1, 5, 30, 5)


@pytest.mark.parametrize(
    ("fit_on", "finalists", "slots", "expected_s"),
    [
        ("train", 3, 1, 6 * (START_S + 200)),
        ("train", 3, 4, 2 * (START_S + 200)),
        ("train_val", 1, 1, 2 * (START_S + 240)),  # not compared, trained on all images only
        ("train_val", 3, 2, 3 * (START_S + 200) + (START_S + 240)),
    ],
)
def test_trainings_on_several_slots_and_all_images(fit_on, finalists, slots, expected_s):
    costs = FinalCosts(fit_on, slots, 0, 10.0, 12.0, 0.0, 0.0, 0.0)
    assert costs.training_s(FinalPlan(finalists, 2, 20, 5)) == pytest.approx(expected_s)


def test_predictions_limit_the_members():
    """They may take a quarter of the time that is left."""
    costs = FinalCosts("train", 1, 0, 10.0, 0.0, 1.0, 16.0, 5.0)
    assert fit_to_time(PLAN, 4 * 3.5 * 16, costs).ensemble == 3
    assert fit_to_time(PLAN, 1.0, costs).ensemble == 1
    # Two members of two networks, each of which is judged once.
    assert costs.after_s(FinalPlan(1, 2, 20, 5)) == 2 * 1.0 + 2 * 16.0 + 5.0


def test_a_selection_that_takes_too_long_is_left_out():
    """Its time is then the trainings'."""
    costs = dataclasses.replace(COSTS, selection_s=100.0)
    short_s, long_s = 0.99 * 100 / SELECTION_SHARE, 1.01 * 100 / SELECTION_SHARE
    one = FinalPlan(1, 1, 20, 1)
    assert fit_to_time(one, short_s, costs) == dataclasses.replace(one, epochs=30, selection=False)
    with_selection = fit_to_time(one, long_s, costs)
    assert with_selection.selection and with_selection.epochs < 30
    assert costs.forecast_s(with_selection) <= TIME_SHARE * long_s


@pytest.mark.parametrize(
    ("left_s", "selection", "expected"),
    [(math.inf, True, True), (math.inf, False, False), (70, True, True), (30, True, False)],
)
def test_no_selection_once_the_trainings_are_too_late(left_s, selection, expected):
    """80 s are planned for what follows the trainings, 40 of them for the selection."""
    end = None if math.isinf(left_s) else time.monotonic() + left_s
    plan = FinalPlan(1, 1, 20, 1, selection)
    schedule = Schedule(plan, after_s=80.0, selection_s=40.0, end=end)
    assert schedule.has_selection is expected
