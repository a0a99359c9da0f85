"""Detection of consecutive trials that fail for the same reason, independent of the configuration.

A trial counts if it failed within QUICK_S by a crash, by unreadable images or with a damaged cache.
Out of memory, divergence and time limits depend on the configuration and do not count.
"""

from __future__ import annotations

import re

from optuna.trial import FrozenTrial

from search.storage import trial_records
from search.storage.trial_records import EndReason, State, TrialAttr

#: Number of consecutive failures that block a worker; largest duration of each in seconds.
MAX_FAILURES, QUICK_S = 3, 30.0
#: Message of a trial that was requeued because the cache changed during its training.
CACHE_DAMAGED = "the cache of the images was damaged or deleted during the training"
#: Reasons that are unlikely to depend on the configuration.
_REASONS = frozenset({EndReason.CRASH, EndReason.DATA})


class FailureStreak:
    """The latest trials of one worker that failed within QUICK_S for the same reason.

    numbers: of the trials. cause: their reason and message.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.cause: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the next trial is expected to fail as well."""
        return len(self.numbers) >= MAX_FAILURES

    def add(self, trial: FrozenTrial, seconds: float) -> None:
        """Add a trial that the worker held for some seconds."""
        cause = _cause_of(trial)
        if cause is None and trial_records.was_interrupted(trial):
            return  # neither a failure nor a success
        if cause is None or seconds > QUICK_S:
            self.numbers, self.cause = [], None
            return
        if self.cause is None or _without_numbers(cause) != _without_numbers(self.cause):
            self.numbers = []
        self.cause = cause
        self.numbers.append(trial.number)

    def describe(self, study: str) -> str:
        """Return one line: what failed, why, and what to do."""
        numbers = " ".join(map(str, self.numbers))
        return (
            f"{study}: {len(self.numbers)} trials in a row ({numbers}) failed within seconds for "
            f"the same reason: {self.cause}; remove the cause and start again, repeat the failed "
            f"ones with `lesionsearch trials retry {study} {numbers}`, or ignore this with "
            f"--keep-going"
        )


def _cause_of(trial: FrozenTrial) -> str | None:
    reason, message = trial_records.reason_of(trial), trial.user_attrs.get(TrialAttr.MESSAGE)
    if message == CACHE_DAMAGED:
        return CACHE_DAMAGED
    is_failed = trial_records.state_of(trial) == State.FAILED and reason in _REASONS
    return f"{reason}: {message}" if is_failed else None


def _without_numbers(cause: str) -> str:
    """Return a cause without numbers and addresses, which differ from trial to trial."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", cause)
