"""What a trial is in our words, from records made by hand."""

from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial

from search.storage import trial_records
from search.storage.trial_records import CLOSED_WITHOUT_COST, State

START = datetime(2026, 1, 1)
FINISHED = {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def trial(number, state, value=None, hours=None, **attrs):
    made = create_trial(
        state=state, value=value if state == TrialState.COMPLETE else None, user_attrs=attrs
    )
    made.number = number
    made.datetime_start = START if hours is not None else None
    made.datetime_complete = START + timedelta(hours=hours) if hours is not None else None
    return made


def span(number, state, began, ended=None, **attrs):
    """A trial with its hours by the database's clock, which go before those of its host."""
    attrs |= {"started_at": began * 3600.0} | (
        {} if ended is None else {"ended_at": ended * 3600.0}
    )
    made = trial(number, state, 0.5, hours=1000, **attrs)
    if not state.is_finished():
        made.datetime_complete = None
    return made


C, P, F, R, W = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)

KNOWN = [
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


def test_every_trial_has_the_state_that_it_ended_in():
    assert [trial_records.state_of(t) for t in KNOWN] == [
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
def test_every_state_of_optuna_has_a_word(state):
    assert trial_records.state_of(trial(0, state, 0.5)) in set(State) - {"skipped"}


@pytest.mark.parametrize("reason", sorted(CLOSED_WITHOUT_COST))
@pytest.mark.parametrize("state", sorted(FINISHED, key=lambda s: s.value))
def test_every_reason_to_skip_makes_a_trial_skipped(reason, state):
    assert trial_records.state_of(trial(0, state, 0.5, reason=reason)) == "skipped"


def test_counts_are_of_every_state_and_add_up():
    counts = trial_records.count_by_state(KNOWN)
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
    assert next(iter(trial_records.count_reasons(KNOWN).items())) == ("oom", 2)
    assert sum(trial_records.count_reasons(KNOWN).values()) == 8
    assert trial_records.count_reasons([]) == {}


def test_what_is_skipped_waiting_or_running_costs_no_budget():
    assert trial_records.count_finished(KNOWN) == 6
    assert trial_records.count_finished([]) == 0


def test_hours_are_those_of_training_one_after_another():
    known = [
        trial(0, C, 0.5, hours=1),
        trial(1, R),
        trial(2, W),
        # Its process was killed; that was noticed when somebody came back the next week.
        span(3, F, START.timestamp() / 3600 + 2, START.timestamp() / 3600 + 2.5, reason="lost"),
    ]
    assert trial_records.hours_spent(known) == pytest.approx(1.5)
    assert trial_records.hours_spent([]) == 0


@pytest.mark.parametrize(
    ("spans", "hours"),
    [
        ([(0, 1), (1, 2)], 2),  # one after another
        ([(0, 1), (5, 6)], 2),  # with a night between
        ([(0, 2), (0, 2), (1, 2)], 2),  # side by side
        ([(0, 4), (1, 2)], 4),  # one within another
        ([(1, 3), (0, 2)], 3),  # overlapping, the later first
        ([(2, 1)], 0),  # clocks that were put back
    ],
)
def test_hours_go_by_the_clock_however_many_train(spans, hours):
    known = [span(i, C, *each) for i, each in enumerate(spans)]
    assert trial_records.hours_spent(known) == pytest.approx(hours)


def test_a_trial_at_work_counts_up_to_now_and_one_that_was_interrupted_as_long_as_it_ran():
    known = [span(0, F, 0, 1, reason=trial_records.EndReason.INTERRUPTED), span(1, R, 2)]
    assert trial_records.hours_spent(known, now=2.5 * 3600) == pytest.approx(1.5)
    assert trial_records.hours_spent(known, now=4 * 3600) == pytest.approx(3)


def test_hours_of_gpus_are_added_up_and_a_part_of_one_counts_as_that():
    owners = [("cuda:0", 1.0), ("cuda:1", 1.0), ("cuda", 0.5), ("cpu", 1.0), ("mps", 1.0)]
    known = [
        span(i, C, 0, 2, owner={"device": device, "share": share})
        for i, (device, share) in enumerate(owners)
    ]
    at_work = span(9, R, 0, owner={"device": "cuda:0", "share": 1.0})
    assert trial_records.gpu_hours_spent(known) == pytest.approx(5)
    assert trial_records.gpu_hours_spent([*known, at_work], now=1 * 3600) == pytest.approx(6)
    assert trial_records.gpu_hours_spent([span(0, C, 0, 2)]) == 0  # nobody knows on what


def test_the_best_comes_first_and_of_equals_the_earlier():
    values = [(0, 0.5), (1, 0.75), (2, 0.25), (3, 0.75), (4, 0.0)]
    known = [trial(n, C, v) for n, v in values]
    assert [t.number for t in trial_records.rank_trials(reversed(known))] == [1, 3, 0, 2, 4]


def test_only_complete_trials_are_ranked():
    assert [t.number for t in trial_records.rank_trials(KNOWN)] == [7, 0]
    assert trial_records.rank_trials([]) == []


def test_what_was_given_is_no_part_of_what_was_drawn():
    known = [trial(0, C, 0.5, digest="a", fixed_config={}), trial(1, C, 0.5, digest="b")]
    assert [trial_records.has_fixed_config(t) for t in known] == [True, False]
    assert trial_records.tried_digests(known) == {"b"}


def test_tried_are_the_configurations_that_need_no_other_trial():
    assert trial_records.tried_digests(KNOWN) == set("abcdghij")


def test_cut_off_are_those_that_were_queued_again():
    assert [t.number for t in KNOWN if trial_records.was_interrupted(t)] == [5, 6]
