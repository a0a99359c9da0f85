"""Hours of training from records made by hand."""

import pytest

from search.spec.study_spec import BudgetSpec
from search.storage.training_time import gpu_hours_spent, hours_spent, is_time_over
from search.storage.trial_records import EndReason
from tests.search.storage.test_trial_records import START, C, F, R, W, trial


def span(number, state, start, ended=None, **attrs):
    """A trial with times by the database's clock, which override those of its host."""
    attrs |= {"started_at": start * 3600.0} | (
        {} if ended is None else {"ended_at": ended * 3600.0}
    )
    record = trial(number, state, 0.5, hours=1000, **attrs)
    if not state.is_finished():
        record.datetime_complete = None
    return record


def test_hours_of_consecutive_trials_are_added():
    trials = [
        trial(0, C, 0.5, hours=1),
        trial(1, R),
        trial(2, W),
        # Its process was killed, which was noticed a week later.
        span(3, F, START.timestamp() / 3600 + 2, START.timestamp() / 3600 + 2.5, reason="lost"),
    ]
    assert hours_spent(trials) == pytest.approx(1.5)
    assert hours_spent([]) == 0


@pytest.mark.parametrize(
    ("spans", "hours"),
    [
        ([(0, 1), (1, 2)], 2),  # one after another
        ([(0, 1), (5, 6)], 2),  # with a night between
        ([(0, 2), (0, 2), (1, 2)], 2),  # side by side
        ([(0, 4), (1, 2)], 4),  # one within another
        ([(1, 3), (0, 2)], 3),  # overlapping, the later first
        ([(2, 1)], 0),  # a clock that was set back
    ],
)
def test_parallel_trials_count_once(spans, hours):
    trials = [span(i, C, *each) for i, each in enumerate(spans)]
    assert hours_spent(trials) == pytest.approx(hours)


def test_a_running_trial_counts_until_now():
    trials = [span(0, F, 0, 1, reason=EndReason.INTERRUPTED), span(1, R, 2)]
    assert hours_spent(trials, now=2.5 * 3600) == pytest.approx(1.5)
    assert hours_spent(trials, now=4 * 3600) == pytest.approx(3)


def test_gpu_hours_are_added_and_weighted_by_share():
    owners = [("cuda:0", 1.0), ("cuda:1", 1.0), ("cuda", 0.5), ("cpu", 1.0), ("mps", 1.0)]
    trials = [
        span(i, C, 0, 2, owner={"device": device, "share": share})
        for i, (device, share) in enumerate(owners)
    ]
    at_work = span(9, R, 0, owner={"device": "cuda:0", "share": 1.0})
    assert gpu_hours_spent(trials) == pytest.approx(5)
    assert gpu_hours_spent([*trials, at_work], now=1 * 3600) == pytest.approx(6)
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
