"""What a trial's record in the storage means: state, reason, attributes and rank.

Optuna's states are waiting, running, complete, pruned and failed. This project adds "closed" for
trials that were closed without a result of their own: a configuration that was tried already or
that a constraint forbids, or a training that was interrupted and queued again. They cost no budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import optuna
from optuna.trial import FrozenTrial


class State(StrEnum):
    """A trial's state: Optuna's, or closed without cost."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    FAIL = FAILED  # Optuna's name
    CLOSED = "closed"


class EndReason(StrEnum):
    """Why a trial failed, was closed or ended early; stored as ``TrialAttr.REASON``."""

    OOM = "oom"
    DIVERGED = "diverged"
    TIMEOUT = "timeout"
    DATA = "data"
    CRASH = "crash"
    OUT_OF_TIME = "time"
    EARLY_STOPPING = "early stopping"
    DUPLICATE = "duplicate"
    CONSTRAINT = "constraint"
    CONFIG = "config"
    LOST = "lost"
    INTERRUPTED = "interrupted"


#: Reasons of trials that go on under another number.
REQUEUED = frozenset({EndReason.LOST, EndReason.INTERRUPTED})
#: Reasons of trials that were closed without cost.
CLOSED_WITHOUT_COST = REQUEUED | {EndReason.DUPLICATE, EndReason.CONSTRAINT, EndReason.CONFIG}


class TrialAttr:
    """Keys of a trial's user attributes."""

    CONFIG = "config"
    #: Of the configuration; equal configurations have equal digests.
    DIGEST = "digest"
    #: A whole configuration that was queued, where the study's space does not hold it.
    FIXED_CONFIG = "fixed_config"
    #: The name of the published system that the trial was queued for.
    BASELINE = "baseline"
    #: Whether the configuration may have been tried already.
    ALLOW_DUPLICATE = "allow_duplicate"
    #: The number of the trial that the user had repeated.
    REPEAT_OF = "repeat_of"
    #: The number of the trial with the same configuration, of a duplicate.
    DUPLICATE_OF = "duplicate_of"
    #: The number of the first attempt, of a trial that was requeued.
    REQUEUED_FROM = "requeued_from"
    #: The number of the next attempt, of a trial that was interrupted or lost.
    REQUEUED_AS = "requeued_as"
    #: The numbers of the latest attempts, oldest first.
    ATTEMPTS = "attempts"
    #: How many attempts were lost with their workers.
    TIMES_LOST = "times_lost"
    #: The worker, its process and its slot.
    OWNER = "owner"
    #: The study's training time when the trial was claimed, and at its end or its latest heartbeat:
    #: seconds in which at least one worker trained, by the workers' monotonic clocks.
    TRAINING_START = "training_start_s"
    TRAINING_END = "training_end_s"
    #: Seconds since 1970 by the database's clock, for display only.
    STARTED_AT = "started_at"
    ENDED_AT = "ended_at"
    REASON = "reason"
    MESSAGE = "message"
    #: Epochs that an ended trial was trained for, over all folds.
    EPOCHS = "epochs"
    #: Results of the finished folds of a cross-validation.
    FOLDS = "folds"


#: What a requeued trial takes along from the trial that was queued first.
QUEUE_ATTRS = frozenset(
    {TrialAttr.BASELINE, TrialAttr.FIXED_CONFIG, TrialAttr.ALLOW_DUPLICATE, TrialAttr.REPEAT_OF}
)


class StudyAttr:
    """Keys of a study's user attributes."""

    #: The study file as plain data; only studies of this project have it.
    SPEC = "spec"
    #: Fingerprint of the data set.
    DATA = "data"
    SPLIT = "split"
    #: New groups of near-duplicates, by the names of the records.
    GROUPS = "groups"
    #: Location of the artifact store; None for the study's folder.
    ARTIFACTS = "artifacts"
    #: Marks the artifact store as this study's.
    UUID = "uuid"
    #: Times of the test evaluations, ISO 8601 in UTC.
    TEST_EVALUATIONS = "test_evaluations"
    #: The Command to all workers.
    COMMAND = "command"
    #: The time of the whole job; see ``search.study.deadline``.
    CLOCK = "clock"


def state_of(trial: FrozenTrial) -> State:
    """Return a trial's state."""
    return State.CLOSED if reason_of(trial) in CLOSED_WITHOUT_COST else State[trial.state.name]


def reason_of(trial: FrozenTrial) -> str | None:
    """Return why a trial failed, was closed or ended early; None if there is no such reason."""
    reason: str | None = trial.user_attrs.get(TrialAttr.REASON)
    return reason


def describe_state(trial: FrozenTrial) -> str:
    """Return a trial's state for people: ``interrupted, requeued as trial 3`` or ``complete``."""
    if not was_interrupted(trial):
        return str(state_of(trial))
    successor = trial.user_attrs.get(TrialAttr.REQUEUED_AS)
    return "interrupted" if successor is None else f"interrupted, requeued as trial {successor}"


def was_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a trial was interrupted or lost; its parameters were queued again."""
    return reason_of(trial) in REQUEUED


def first_number(trial: FrozenTrial) -> int:
    """Return the number of a requeued trial's first attempt; for any other trial its own."""
    return int(trial.user_attrs.get(TrialAttr.REQUEUED_FROM, trial.number))


def has_fixed_config(trial: FrozenTrial) -> bool:
    """Return whether the configuration was queued as a whole: the space may not hold it."""
    return TrialAttr.FIXED_CONFIG in trial.user_attrs


def config_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's TrialConfig as plain data."""
    config: dict[str, Any] = trial.user_attrs[TrialAttr.CONFIG]
    return config


def folds_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return ``cross_validation.summarize_folds`` of the finished folds; None without any."""
    folds: dict[str, Any] | None = trial.user_attrs.get(TrialAttr.FOLDS)
    return folds


def epochs_trained(trial: FrozenTrial) -> int:
    """Return the epochs that an ended trial was trained for, over all folds.

    Of other trials, those that it reported; of a cross-validation, those of its first fold.
    """
    return int(trial.user_attrs.get(TrialAttr.EPOCHS) or len(dice_by_epoch(trial)))


def dice_by_epoch(trial: FrozenTrial) -> dict[int, float]:
    """Return the validation Dice of each epoch; of a cross-validation, of its first fold."""
    epochs = trial.user_attrs.get(TrialAttr.CONFIG, {}).get("epochs")
    reported = sorted(trial.intermediate_values.items())
    return {step: value for step, value in reported if epochs is None or step <= epochs}


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return every trial by number; not to be changed."""
    return study.get_trials(deepcopy=False)


def count_by_state(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Count the trials in each state, zeros included."""
    counted = Counter(state_of(t) for t in trials)
    return {state.value: counted[state] for state in State}


def count_reasons(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Count the reasons, most frequent first."""
    return dict(Counter(r for t in trials if (r := reason_of(t))).most_common())


def count_finished(trials: Iterable[FrozenTrial]) -> int:
    """Count the trials that cost budget: complete, pruned and failed ones."""
    return sum(state_of(t) in {State.COMPLETE, State.PRUNED, State.FAILED} for t in trials)


def tried_digests(trials: Iterable[FrozenTrial]) -> set[str]:
    """Return digests of sampled configurations that were trained, are running or are refused."""
    refused = {EndReason.CONSTRAINT, EndReason.CONFIG}
    return {
        t.user_attrs[TrialAttr.DIGEST]
        for t in trials
        if TrialAttr.DIGEST in t.user_attrs
        and not has_fixed_config(t)
        and (state_of(t) != State.CLOSED or reason_of(t) in refused)
    }


def rank_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials, best first; of two equals the earlier one first."""
    complete = [t for t in trials if state_of(t) == State.COMPLETE and t.value is not None]
    return sorted(complete, key=lambda t: (-(t.value or 0.0), t.number))
