"""How long the trials of a study were trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial

from search.spec.study_spec import BudgetSpec
from search.storage.trial_records import TrialAttr


def hours_spent(trials: Iterable[FrozenTrial]) -> float:
    """Return the hours in which at least one worker trained.

    trials: of one study. A running or lost trial ends with its worker's latest heartbeat.
    """
    total, until = 0.0, 0.0
    for start, end in sorted(_spans(trials)):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 3600


def gpu_hours_spent(trials: Iterable[FrozenTrial]) -> float:
    """Return the hours on GPUs, summed over workers; half a GPU counts half."""
    seconds = 0.0
    for trial in trials:
        owner = trial.user_attrs.get(TrialAttr.OWNER, {})
        if str(owner.get("device")).startswith("cuda"):
            share = float(owner.get("share", 1.0))
            seconds += sum((end - start) * share for start, end in _spans([trial]))
    return seconds / 3600


def seconds_of(trial: FrozenTrial) -> float | None:
    """Return the seconds that a worker had the trial; None if none ever had it."""
    return next((end - start for start, end in _spans([trial])), None)


def is_time_over(trials: Sequence[FrozenTrial], budget: BudgetSpec) -> bool:
    """Return whether trials of all workers and sessions have spent the hours or the GPU hours."""
    if budget.hours is not None and hours_spent(trials) >= budget.hours:
        return True
    return budget.gpu_hours is not None and gpu_hours_spent(trials) >= budget.gpu_hours


def _spans(trials: Iterable[FrozenTrial]) -> list[tuple[float, float]]:
    """Return start and end of each started trial by the study's training time.

    Trials of other programs and of earlier versions have only wall-clock times; these are not part
    of the study's training time and are added separately.
    """
    spans = []
    for trial in trials:
        attrs, start, end = trial.user_attrs, trial.datetime_start, trial.datetime_complete
        if TrialAttr.TRAINING_START in attrs:
            spans.append((attrs[TrialAttr.TRAINING_START], attrs[TrialAttr.TRAINING_END]))
        elif start is not None and end is not None:
            started_at = float(attrs.get(TrialAttr.STARTED_AT, start.timestamp()))
            ended_at = float(attrs.get(TrialAttr.ENDED_AT, end.timestamp()))
            spans.append((started_at, max(started_at, ended_at)))
    return spans
