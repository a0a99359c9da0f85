"""Consecutive failures that do not depend on the configuration."""

import pytest
from optuna.trial import TrialState, create_trial

from search.workers.failure_streak import CACHE_DAMAGED, MAX_FAILURES, QUICK_S, FailureStreak

MISSING = ("crash", "FileNotFoundError: /runs/s/trials/{n}/state.pt")
GOOD = (None, None)


def count(*trials: tuple[str | None, str | None] | tuple[str | None, str | None, float]) -> int:
    """Return the length of the streak after trials with a reason, a message and seconds."""
    streak = FailureStreak()
    for number, (reason, message, *seconds) in enumerate(trials):
        attrs = {} if reason is None else {"reason": reason}
        attrs |= {} if message is None else {"message": message.format(n=number)}
        state = TrialState.COMPLETE if reason is None else TrialState.FAIL
        value = 0.5 if reason is None else None
        trial = create_trial(state=state, value=value, user_attrs=attrs)
        trial.number = number
        streak.add(trial, *(seconds or [1.0]))
    assert streak.is_complete == (len(streak.numbers) >= MAX_FAILURES)
    return len(streak.numbers)


@pytest.mark.parametrize(
    ("expected", "trials"),
    [
        (3, [MISSING] * 3),
        (2, [GOOD, MISSING, MISSING]),
        (1, [MISSING, MISSING, GOOD, MISSING]),
        (1, [MISSING, MISSING, ("crash", "ended by SIGSEGV")]),
        (3, [("data", "gone"), ("interrupted", None), ("data", "gone"), ("data", "gone")]),
        (3, [("interrupted", CACHE_DAMAGED)] * 3),
        (0, [MISSING, MISSING, (*MISSING, QUICK_S + 1)]),
        # Reasons that depend on the configuration, and trials that are closed without cost.
        (0, [("oom", "out of memory")] * 3),
        (0, [("diverged", "the training loss became nan in epoch 1")] * 3),
        (0, [("timeout", "no step was done")] * 3),
        (0, [MISSING, MISSING, ("duplicate", "the same configuration as trial 0")]),
    ],
)
def test_length_of_the_streak(expected, trials):
    assert count(*trials) == expected


def test_description_names_trials_cause_and_what_to_do():
    streak = FailureStreak()
    for number in (4, 7, 8):
        attrs = {"reason": "crash", "message": f"exit code 3 of {number}"}
        trial = create_trial(state=TrialState.FAIL, user_attrs=attrs)
        trial.number = number
        streak.add(trial, 1.0)
    assert streak.describe("isic") == (
        "isic: 3 trials in a row (4 7 8) failed within seconds for the same reason: "
        "crash: exit code 3 of 8; remove the cause and start again, repeat the failed ones with "
        "`lesionsearch trials retry isic 4 7 8`, or ignore this with --keep-going"
    )
