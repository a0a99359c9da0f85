"""Hours of training from records made by hand."""

import pytest

from search.spec.study_spec import BudgetSpec
from search.storage.training_time import (
    gpu_hours_spent,
    hours_spent,
    is_time_over,
    seconds_of,
)
from search.storage.trial_records import EndReason
from tests.search.storage.test_trial_records import C, F, R, W, trial


def span(number, state, start, end, **attrs):
    """A trial with hours of the study's training time, which override those of clocks."""
    attrs |= {"training_start_s": start * 3600.0, "training_end_s": end * 3600.0}
    return trial(number, state, 0.5, hours=1000, started_at=1e9, ended_at=2e9, **attrs)


def test_trials_of_earlier_versions_have_the_hours_of_clocks():
    trials = [
        trial(0, C, 0.5, hours=1),
        trial(1, R),
        trial(2, W),
        # Its process was killed, which was noticed a week later.
        trial(3, F, hours=7 * 24, started_at=1e9, ended_at=1e9 + 1800, reason=EndReason.LOST),
        trial(4, C, 0.5, hours=-1),  # a clock that was set back
        span(5, R, 0, 0.25),
    ]
    assert hours_spent(trials) == pytest.approx(1.75)
    assert [seconds_of(t) for t in trials] == [3600, None, None, 1800, 0, 900]
    assert hours_spent([]) == 0


@pytest.mark.parametrize(
    ("spans", "hours"),
    [
        ([(0, 1), (1, 2)], 2),  # one after another
        ([(0, 1), (5, 6)], 2),  # with a night between
        ([(0, 2), (0, 2), (1, 2)], 2),  # side by side
        ([(0, 4), (1, 2)], 4),  # one within another
        ([(1, 3), (0, 2)], 3),  # overlapping, the later first
    ],
)
def test_parallel_trials_count_once(spans, hours):
    trials = [span(i, C, *each) for i, each in enumerate(spans)]
    assert hours_spent(trials) == pytest.approx(hours)


def test_gpu_hours_are_added_and_weighted_by_share():
    owners = [("cuda:0", 1.0), ("cuda:1", 1.0), ("cuda", 0.5), ("cpu", 1.0), ("mps", 1.0)]
    trials = [
        span(i, C, 0, 2, owner={"device": device, "share": share})
        for i, (device, share) in enumerate(owners)
    ]
    at_work = span(9, R, 0, 1, owner={"device": "cuda:0", "share": 1.0})
    assert gpu_hours_spent(trials) == pytest.approx(5)
    assert gpu_hours_spent([*trials, at_work]) == pytest.approx(6)
    assert gpu_hours_spent([span(0, C, 0, 2)]) == 0  # the device is unknown


@pytest.mark.parametrize(
    ("hours", "gpu_hours", "is_over"),
    [
        (None, None, False),
        (1.5, None, True),
        (2.0, None, True),
        (2.5, None, False),  # parallel trials count once
        (None, 3.0, True),
        (None, 3.5, False),
        (1, 100, True),  # either limit ends the study
        (100, 1, True),
    ],
)
def test_a_time_budget_is_over_when_either_limit_is_reached(hours, gpu_hours, is_over):
    owners = [("cuda:0", 1.0), ("cuda:1", 0.5), ("cpu", 1.0)]
    trials = [
        span(i, C, 0, 2, owner={"device": device, "share": share})
        for i, (device, share) in enumerate(owners)
    ]
    assert is_time_over(trials, BudgetSpec(hours=hours, gpu_hours=gpu_hours)) is is_over
    assert not is_time_over([], BudgetSpec(hours=1e-9, gpu_hours=1e-9))
