"""How long the trials of a study were trained."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial

from search.spec.study_spec import BudgetSpec
from search.storage.trial_records import TrialAttr


def hours_spent(trials: Iterable[FrozenTrial], now: float | None = None) -> float:
    """Return the hours by the clock in which at least one worker trained.

    Args:
        trials: of one study. A lost trial ended with its worker's last heartbeat.
        now: seconds since 1970, taken as the end of running trials; None for the current time.
    """
    total, until = 0.0, 0.0
    for start, end in sorted(_spans(trials, now)):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 3600


def gpu_hours_spent(trials: Iterable[FrozenTrial], now: float | None = None) -> float:
    """Return the hours on GPUs, summed over workers; half a GPU counts half."""
    seconds = 0.0
    for trial in trials:
        owner = trial.user_attrs.get(TrialAttr.OWNER, {})
        if str(owner.get("device")).startswith("cuda"):
            share = float(owner.get("share", 1.0))
            seconds += sum((end - start) * share for start, end in _spans([trial], now))
    return seconds / 3600


def seconds_of(trial: FrozenTrial, now: float | None = None) -> float | None:
    """Return the seconds that a worker had the trial; None if none ever had it."""
    spans = _spans([trial], now)
    return max(0.0, spans[0][1] - spans[0][0]) if spans else None


def is_time_over(trials: Sequence[FrozenTrial], budget: BudgetSpec) -> bool:
    """Return whether trials of all workers and sessions have spent the hours or the GPU hours."""
    if budget.hours is not None and hours_spent(trials) >= budget.hours:
        return True
    return budget.gpu_hours is not None and gpu_hours_spent(trials) >= budget.gpu_hours


def _spans(trials: Iterable[FrozenTrial], now: float | None) -> list[tuple[float, float]]:
    """Return start and end of each started trial, by the database's clock where it was noted."""
    now = time.time() if now is None else now
    spans = []
    for trial in trials:
        if trial.datetime_start is None:
            continue
        complete = trial.datetime_complete
        start = trial.user_attrs.get(TrialAttr.STARTED_AT, trial.datetime_start.timestamp())
        end = now if complete is None else complete.timestamp()
        spans.append((float(start), float(trial.user_attrs.get(TrialAttr.ENDED_AT, end))))
    return spans
