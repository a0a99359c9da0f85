"""Cross-validation: trials of several trainings, their results and their pruning.

The epochs of the first fold are reported at steps 1 to ``budget.epochs``, like those of a single
training. After fold i > 1 the mean of the best Dice of the folds so far is reported at step
``budget.epochs`` + i - 1.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial
from pydantic import TypeAdapter

from lesionseg.runtime.files import atomic_write, read_json
from lesionseg.training.types import TrainResult
from search.study.pruners import trials_at

FORMAT = "lesionsearch-folds/1"

_RESULTS = TypeAdapter(list[TrainResult])


class FoldPruner(BasePruner):
    """Use another pruner within the first fold, and the median rule after each further one.

    A trial is stopped if the mean over its folds is below the median of other trials' means over
    the same number of folds, if there are at least ``startup`` of these. Means over different
    numbers of folds are not comparable.

    Args:
        first_fold_pruner: The pruner for the epochs of the first fold.
        epochs: Largest number of epochs of a fold.
        startup: Number of other trials that the median needs.
    """

    def __init__(self, first_fold_pruner: BasePruner, epochs: int, startup: int) -> None:
        self.first_fold_pruner, self.epochs = first_fold_pruner, epochs
        self.startup = max(startup, 1)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether to stop the trial after its latest step."""
        step = trial.last_step
        if step is None or step <= self.epochs:
            return self.first_fold_pruner.prune(study, trial)
        trials = trials_at(study, step)
        rivals = [t.intermediate_values[step] for t in trials if t.number != trial.number]
        if len(rivals) < self.startup:
            return False
        return trial.intermediate_values[step] < statistics.median(rivals)


def mean_dice(results: Sequence[TrainResult]) -> float:
    """Return the mean over folds of the best epoch's Dice."""
    return statistics.fmean(result.best.metrics.dice for result in results)


def mean_metrics(results: Sequence[TrainResult]) -> dict[str, float]:
    """Return the mean over folds of each metric of the best epoch."""
    rows = [asdict(result.best.metrics) for result in results]
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def mean_epoch(results: Sequence[TrainResult]) -> int:
    """Return the rounded mean over folds of the best epoch."""
    return round(statistics.fmean(result.best.epoch for result in results))


def summarize_folds(results: Sequence[TrainResult], folds: int) -> dict[str, Any]:
    """Return a trial's user attribute ``folds``: the results of the finished folds.

    Args:
        results: Results of the finished folds.
        folds: Number of all folds.

    Returns:
        ``of``: number of all folds, ``dice`` and ``best_epochs`` of each finished fold, ``mean`` of
        Dice and its sample ``deviation``; these are None for too few folds.
    """
    dice = [result.best.metrics.dice for result in results]
    return {
        "of": folds,
        "dice": dice,
        "best_epochs": [result.best.epoch for result in results],
        "mean": statistics.fmean(dice) if dice else None,
        "deviation": statistics.stdev(dice) if len(dice) > 1 else None,
    }


def save_results(path: Path, digest: str, results: Sequence[TrainResult]) -> None:
    """Write the results of the finished folds; digest: of the configuration."""
    plain = _RESULTS.dump_python([replace(result, checkpoint=None) for result in results])
    atomic_write(path, json.dumps({"format": FORMAT, "digest": digest, "folds": plain}))


def load_results(path: Path, digest: str) -> list[TrainResult]:
    """Read saved results; none without a valid file of this configuration."""
    try:
        saved = read_json(path)
        if (saved["format"], saved["digest"]) != (FORMAT, digest):
            return []
        results = _RESULTS.validate_python(saved["folds"])
    except (ValueError, KeyError, TypeError):
        return []
    return results if all(map(_is_complete, results)) else []


def _is_complete(result: TrainResult) -> bool:
    epochs = [record.epoch for record in result.history]
    return (
        bool(epochs) and epochs == list(range(1, len(epochs) + 1)) and result.best.epoch in epochs
    )
