"""Cross-validation: a trial that is several trainings, what is kept between them, when it ends.

Epochs of the first fold are reported as those of any training, at steps 1 to ``budget.epochs``.
After fold i > 1 the mean over the folds so far, each with its best epoch's Dice, is reported at
step ``budget.epochs`` + i - 1.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from lesionseg.metrics import Metrics
from lesionseg.runtime.files import atomic_write
from lesionseg.training.types import EpochRecord, TrainResult
from search.storage import trial_records

FORMAT = "lesionsearch-folds/1"


class FoldPruner(BasePruner):
    """Within the first fold another pruner's decision; after the others the median's.

    A trial whose mean over its folds is below the median of other trials' means over as many folds
    is stopped, once there are ``startup`` of these. Nothing else is comparable: a mean over two
    folds says little beside one over three, or beside an epoch's value.

    epochs: of one fold, at most.
    """

    def __init__(self, within: BasePruner, epochs: int, startup: int) -> None:
        self.within, self.epochs, self.startup = within, epochs, max(startup, 1)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial, at its latest step, is not worth going on with."""
        step = trial.last_step
        if step is None or step <= self.epochs:
            return self.within.prune(study, trial)
        rivals = [
            t.intermediate_values[step]
            for t in study.get_trials(deepcopy=False)
            if t.number != trial.number
            and step in t.intermediate_values
            and not trial_records.was_interrupted(t)  # it goes on as another, maybe as this one
        ]
        if len(rivals) < self.startup:
            return False
        return trial.intermediate_values[step] < statistics.median(rivals)


def mean_dice(results: Sequence[TrainResult]) -> float:
    """Over folds, each with its best epoch's."""
    return statistics.fmean(result.best.metrics.dice for result in results)


def mean_metrics(results: Sequence[TrainResult]) -> dict[str, float]:
    """Every metric's, likewise."""
    rows = [asdict(result.best.metrics) for result in results]
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def mean_epoch(results: Sequence[TrainResult]) -> int:
    """The best epochs' mean, rounded."""
    return round(statistics.fmean(result.best.epoch for result in results))


def summary(results: Sequence[TrainResult], folds: int) -> dict[str, Any]:
    """The user attribute ``folds`` of a trial: what each fold that is done has given.

    ``of``: how many there are in all. ``deviation``: of a sample; None of one fold alone.
    """
    dice = [result.best.metrics.dice for result in results]
    return {
        "of": folds,
        "dice": dice,
        "best_epochs": [result.best.epoch for result in results],
        "mean": statistics.fmean(dice) if dice else None,
        "deviation": statistics.stdev(dice) if len(dice) > 1 else None,
    }


def save(path: Path, digest: str, results: Sequence[TrainResult]) -> None:
    """Writes what the folds that are done have given, or nothing; digest: the configuration's."""
    plain = [
        {
            "history": [asdict(record) for record in result.history],
            "best": result.best.epoch,
            "stopped": result.stopped,
            "seconds": result.seconds,
            "peak_memory": result.peak_memory,
        }
        for result in results
    ]
    atomic_write(path, json.dumps({"format": FORMAT, "digest": digest, "folds": plain}))


def load(path: Path, digest: str) -> list[TrainResult]:
    """What ``save`` wrote; nothing where there is no such file, or it is not of this training."""
    try:
        found = json.loads(path.read_text())
        if (found["format"], found["digest"]) != (FORMAT, digest):
            return []
        return [_result(plain) for plain in found["folds"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _result(plain: dict[str, Any]) -> TrainResult:
    history = tuple(
        EpochRecord(**record | {"metrics": Metrics(**record["metrics"])})
        for record in plain["history"]
    )
    return TrainResult(
        best=history[plain["best"] - 1],
        history=history,
        stopped=plain["stopped"],
        seconds=plain["seconds"],
        peak_memory=plain["peak_memory"],
        checkpoint=None,
    )
