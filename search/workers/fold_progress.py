"""Finished trainings of a trial: one, or one per fold of a cross-validation."""

from __future__ import annotations

from typing import Any

from lesionseg.training.types import TrainingEnd, TrainResult
from search.storage.lease_types import Claim
from search.storage.retention import FOLDS, PICTURE, STATE, WEIGHTS
from search.storage.trial_records import TrialAttr
from search.study import cross_validation
from search.workers.trial_context import TrialContext
from search.workers.trial_files import put_optional


class FoldProgress:
    """Results of a trial's finished trainings, stored so that the trial can be resumed.

    digest: of the trial's configuration.
    """

    def __init__(self, context: TrialContext, claim: Claim, digest: str) -> None:
        self.store, self.number, self.digest = context.store, claim.number, digest
        self.trainings = context.data.trainings
        self.max_epochs = context.spec.budget.epochs
        self.results: list[TrainResult] = []

    @property
    def has_folds(self) -> bool:
        """Whether the trial is a cross-validation."""
        return len(self.trainings) > 1

    @property
    def is_complete(self) -> bool:
        """Whether all trainings are finished."""
        return len(self.results) == len(self.trainings)

    @property
    def epochs(self) -> int:
        """Number of epochs of the finished trainings."""
        return sum(len(result.history) for result in self.results)

    @property
    def seconds(self) -> float:
        """Duration of the finished trainings."""
        return sum(result.seconds for result in self.results)

    def restore(self) -> dict[int, float]:
        """Load the folds of an earlier attempt; return the values that it reported by step."""
        # A file of folds without the first fold's weights is of no use.
        if not self.has_folds or not self.store.local_path(self.number, WEIGHTS).is_file():
            return {}
        path = self.store.local_path(self.number, FOLDS)
        self.results = cross_validation.load_results(path, self.digest)
        if not self.results:
            return {}
        values = {record.epoch: record.metrics.dice for record in self.results[0].history}
        for n in range(2, len(self.results) + 1):
            values[self.max_epochs + n - 1] = cross_validation.mean_dice(self.results[:n])
        return values

    def save(self) -> None:
        """Store the results, and the weights of the first fold."""
        if len(self.results) == 1:
            self.store.put(self.number, WEIGHTS)
            put_optional(self.store, self.number, PICTURE)
        path = self.store.local_path(self.number, FOLDS)
        cross_validation.save_results(path, self.digest, self.results)
        self.store.put(self.number, FOLDS)
        self.store.delete(self.number, STATE)  # of the finished fold

    def mean(self) -> tuple[int, float]:
        """Return the step at which the mean Dice so far is reported, and the mean."""
        step = self.max_epochs + len(self.results) - 1
        return step, cross_validation.mean_dice(self.results)

    def fold_attrs(self) -> dict[str, Any]:
        """Return the user attribute of a cross-validation; nothing for a single training."""
        if not self.has_folds:
            return {}
        whole = [result for result in self.results if result.stopped is not TrainingEnd.CALLBACK]
        return {TrialAttr.FOLDS: cross_validation.summarize_folds(whole, len(self.trainings))}

    def result_attrs(self) -> dict[str, Any]:
        """Return the user attributes of a trial whose trainings are finished."""
        results = self.results
        attrs = {
            "best_epoch": cross_validation.mean_epoch(results),
            "epochs": self.epochs,
            "val": cross_validation.mean_metrics(results),
            "seconds": round(self.seconds, 3),
            "peak_memory": max(result.peak_memory for result in results),
        }
        if any(result.stopped is TrainingEnd.EARLY for result in results):
            attrs["reason"] = "early stopping"
        return attrs | self.fold_attrs()
