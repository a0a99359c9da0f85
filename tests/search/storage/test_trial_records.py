"""States, counts, times and ranks of trials, from records record by hand."""

from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial

from search.storage import trial_records
from search.storage.trial_records import CLOSED_WITHOUT_COST, EndReason, State

START = datetime(2026, 1, 1)
FINISHED = {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def trial(number, state, value=None, hours=None, **attrs):
    record = create_trial(
        state=state, value=value if state == TrialState.COMPLETE else None, user_attrs=attrs
    )
    record.number = number
    record.datetime_start = START if hours is not None else None
    record.datetime_complete = START + timedelta(hours=hours) if hours is not None else None
    return record


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
    trial(3, F, reason=EndReason.DUPLICATE),
    trial(4, P, reason=EndReason.CONSTRAINT, digest="d"),
    trial(5, F, reason=EndReason.LOST, digest="e"),
    trial(6, F, reason=EndReason.INTERRUPTED, digest="f"),
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
        "closed",
        "closed",
        "closed",
        "closed",
        "complete",
        "pruned",
        "running",
        "waiting",
        "failed",
    ]


@pytest.mark.parametrize("state", TrialState)
def test_every_state_of_optuna_has_a_state_here(state):
    assert trial_records.state_of(trial(0, state, 0.5)) in set(State) - {"closed"}


@pytest.mark.parametrize("reason", sorted(CLOSED_WITHOUT_COST))
@pytest.mark.parametrize("state", sorted(FINISHED, key=lambda s: s.value))
def test_reasons_without_cost_close_a_trial(reason, state):
    assert trial_records.state_of(trial(0, state, 0.5, reason=reason)) == "closed"


def test_every_state_is_counted():
    counts = trial_records.count_by_state(TRIALS)
    assert counts == {
        "waiting": 1,
        "running": 1,
        "complete": 2,
        "pruned": 2,
        "failed": 2,
        "closed": 4,
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


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        ({}, "failed"),
        ({"reason": "oom"}, "failed"),
        ({"reason": EndReason.DUPLICATE}, "closed"),
        ({"reason": EndReason.INTERRUPTED, "requeued_as": 3}, "interrupted, requeued as trial 3"),
        ({"reason": EndReason.LOST, "requeued_as": 10}, "interrupted, requeued as trial 10"),
        ({"reason": EndReason.LOST}, "interrupted"),
    ],
)
def test_the_description_of_an_interrupted_trial_names_its_successor(attrs, text):
    assert trial_records.describe_state(trial(0, F, **attrs)) == text
