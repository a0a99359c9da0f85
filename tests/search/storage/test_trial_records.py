"""States, counts, times and ranks of trials, from records trial_ by hand."""

from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial

from search.storage import trial_records
from search.storage.trial_records import CLOSED_WITHOUT_COST, State

START = datetime(2026, 1, 1)
FINISHED = {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def trial(number, state, value=None, hours=None, **attrs):
    trial_ = create_trial(
        state=state, value=value if state == TrialState.COMPLETE else None, user_attrs=attrs
    )
    trial_.number = number
    trial_.datetime_start = START if hours is not None else None
    trial_.datetime_complete = START + timedelta(hours=hours) if hours is not None else None
    return trial_


def span(number, state, start, ended=None, **attrs):
    """A trial with times by the database's clock, which override those of its host."""
    attrs |= {"started_at": start * 3600.0} | (
        {} if ended is None else {"ended_at": ended * 3600.0}
    )
    trial_ = trial(number, state, 0.5, hours=1000, **attrs)
    if not state.is_finished():
        trial_.datetime_complete = None
    return trial_


C, P, F, R, W = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)

TRIALS = [
    trial(0, C, 0.5, digest="a"),
    trial(1, P, digest="b"),
    trial(2, F, reason="oom", digest="c"),
    trial(3, F, reason=trial_records.EndReason.DUPLICATE),
    trial(4, P, reason=trial_records.EndReason.CONSTRAINT, digest="d"),
    trial(5, F, reason=trial_records.EndReason.LOST, digest="e"),
    trial(6, F, reason=trial_records.EndReason.INTERRUPTED, digest="f"),
    trial(7, C, 0.75, reason="early stopping", digest="g"),
    trial(8, P, reason="time", digest="h"),
    trial(9, R, digest="i"),
    trial(10, W),
    trial(11, F, reason="oom", digest="j"),
]


def test_states_follow_from_optunas_state_and_the_reason():
    assert [trial_records.state_of(t) for t in TRIALS] == [
        "complete",
        "pruned",
        "failed",
        "skipped",
        "skipped",
        "skipped",
        "skipped",
        "complete",
        "pruned",
        "running",
        "waiting",
        "failed",
    ]


@pytest.mark.parametrize("state", TrialState)
def test_every_state_of_optuna_has_a_state_here(state):
    assert trial_records.state_of(trial(0, state, 0.5)) in set(State) - {"skipped"}


@pytest.mark.parametrize("reason", sorted(CLOSED_WITHOUT_COST))
@pytest.mark.parametrize("state", sorted(FINISHED, key=lambda s: s.value))
def test_reasons_without_cost_make_a_trial_skipped(reason, state):
    assert trial_records.state_of(trial(0, state, 0.5, reason=reason)) == "skipped"


def test_every_state_is_counted():
    counts = trial_records.count_by_state(TRIALS)
    assert counts == {
        "waiting": 1,
        "running": 1,
        "complete": 2,
        "pruned": 2,
        "failed": 2,
        "skipped": 4,
    }
    assert list(counts) == list(State)
    assert trial_records.count_by_state([]) == dict.fromkeys(State, 0)


def test_reasons_are_counted_most_frequent_first():
    assert next(iter(trial_records.count_reasons(TRIALS).items())) == ("oom", 2)
    assert sum(trial_records.count_reasons(TRIALS).values()) == 8
    assert trial_records.count_reasons([]) == {}


def test_only_complete_pruned_and_failed_trials_cost_budget():
    assert trial_records.count_finished(TRIALS) == 6
    assert trial_records.count_finished([]) == 0


def test_hours_of_consecutive_trials_are_added():
    trials = [
        trial(0, C, 0.5, hours=1),
        trial(1, R),
        trial(2, W),
        # Its process was killed, which was noticed a week later.
        span(3, F, START.timestamp() / 3600 + 2, START.timestamp() / 3600 + 2.5, reason="lost"),
    ]
    assert trial_records.hours_spent(trials) == pytest.approx(1.5)
    assert trial_records.hours_spent([]) == 0


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
    assert trial_records.hours_spent(trials) == pytest.approx(hours)


def test_a_running_trial_counts_until_now():
    trials = [span(0, F, 0, 1, reason=trial_records.EndReason.INTERRUPTED), span(1, R, 2)]
    assert trial_records.hours_spent(trials, now=2.5 * 3600) == pytest.approx(1.5)
    assert trial_records.hours_spent(trials, now=4 * 3600) == pytest.approx(3)


def test_gpu_hours_are_added_and_weighted_by_share():
    owners = [("cuda:0", 1.0), ("cuda:1", 1.0), ("cuda", 0.5), ("cpu", 1.0), ("mps", 1.0)]
    trials = [
        span(i, C, 0, 2, owner={"device": device, "share": share})
        for i, (device, share) in enumerate(owners)
    ]
    at_work = span(9, R, 0, owner={"device": "cuda:0", "share": 1.0})
    assert trial_records.gpu_hours_spent(trials) == pytest.approx(5)
    assert trial_records.gpu_hours_spent([*trials, at_work], now=1 * 3600) == pytest.approx(6)
    assert trial_records.gpu_hours_spent([span(0, C, 0, 2)]) == 0  # the device is unknown


def test_of_two_equal_trials_the_earlier_ranks_first():
    values = [(0, 0.5), (1, 0.75), (2, 0.25), (3, 0.75), (4, 0.0)]
    trials = [trial(n, C, v) for n, v in values]
    assert [t.number for t in trial_records.rank_trials(reversed(trials))] == [1, 3, 0, 2, 4]


def test_only_complete_trials_are_ranked():
    assert [t.number for t in trial_records.rank_trials(TRIALS)] == [7, 0]
    assert trial_records.rank_trials([]) == []


def test_fixed_configurations_are_not_among_the_tried_digests():
    trials = [trial(0, C, 0.5, digest="a", fixed_config={}), trial(1, C, 0.5, digest="b")]
    assert [trial_records.has_fixed_config(t) for t in trials] == [True, False]
    assert trial_records.tried_digests(trials) == {"b"}


def test_tried_digests_leave_out_requeued_trials():
    assert trial_records.tried_digests(TRIALS) == set("abcdghij")


def test_lost_and_interrupted_trials_were_interrupted():
    assert [t.number for t in TRIALS if trial_records.was_interrupted(t)] == [5, 6]
