"""Progress of a claimed trial: its files in the artifact store, its finished folds and its end."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_write
from lesionseg.training.types import EpochRecord, TrainingEnd, TrainResult
from search.storage import artifact_ids, trial_records
from search.storage.artifact_store import ArtifactStore, ArtifactStoreUnavailable
from search.storage.lease_types import Claim
from search.storage.retention import CLEANUP_WINDOW, FOLDS, HISTORY, PICTURE, STATE, WEIGHTS
from search.storage.trial_records import EndReason, TrialAttr
from search.study import cross_validation
from search.trial_process.protocol import flatten_record
from search.trial_process.supervisor import LeaseLost
from search.workers.trial_context import TrialContext

STORE_ERRORS = (ArtifactStoreUnavailable, InputError, OSError)


def finish_trial(
    context: TrialContext,
    claim: Claim,
    state: TrialState,
    value: float | None = None,
    attrs: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
) -> None:
    """Close a trial and delete its checkpoint; raise LeaseLost if another worker holds it.

    files: names of the trial's files that dashboards list.
    """
    study_id = str(context.study.user_attrs.get("uuid", ""))
    artifacts = artifact_ids.artifact_attrs(study_id, claim.number, files)
    if not context.leases.finish(claim, state, value, attrs, artifacts):
        raise LeaseLost("another worker holds the trial")
    # Not before: a worker that dies in between would have to start the trial again.
    for name in (STATE, FOLDS) if context.data.folds else (STATE,):
        context.store.delete(claim.number, name)


def requeue_trial(context: TrialContext, claim: Claim) -> None:
    """Queue an interrupted trial again; only the files that it resumes from are kept."""
    if context.leases.requeue(claim, EndReason.INTERRUPTED) is None:
        return
    resumes_folds = context.data.folds and context.store.local_path(claim.number, FOLDS).is_file()
    for name in (HISTORY,) if resumes_folds else (HISTORY, WEIGHTS, PICTURE):
        context.store.delete(claim.number, name)


def put_optional(store: ArtifactStore, number: int, name: str) -> bool:
    """Upload a file that may not exist; return whether it was uploaded."""
    with suppress(*STORE_ERRORS):
        store.put(number, name)
        return True
    return False


def take_over_files(context: TrialContext, number: int, attempts: Sequence[int]) -> None:
    """Move the checkpoint of the latest earlier attempt to a trial; delete the attempts' files."""
    store = context.store
    # The folds come last: if they exist, the files that belong to them exist too.
    for name in (STATE, WEIGHTS, PICTURE, FOLDS) if context.data.folds else (STATE,):
        for attempt in reversed(attempts):
            path = store.fetch(attempt, name)
            if path is not None:
                path.replace(store.local_path(number, name))
                store.put(number, name)
                break
    for attempt in attempts:
        store.delete_trial(attempt)


def delete_weights(
    store: ArtifactStore, trial: FrozenTrial, ranking: Sequence[FrozenTrial], keep_best: int
) -> None:
    """Delete the weights of an ended trial and of others that are not among the best."""
    numbers = [t.number for t in ranking]
    ended = trial.state.is_finished() and not trial_records.was_interrupted(trial)
    if ended and trial.number not in numbers[:keep_best]:
        store.delete(trial.number, WEIGHTS)
    # Several trials may leave the best ones at once; a check of all trials would be slow.
    for number in numbers[keep_best : keep_best + CLEANUP_WINDOW]:
        store.delete(number, WEIGHTS)


class StateUploader:
    """Uploads training states in the background, always the latest one."""

    def __init__(self, store: ArtifactStore, number: int) -> None:
        self.store, self.number = store, number
        self.thread = threading.Thread()  # of the latest upload

    def start(self) -> None:
        """Upload the current state, unless an upload is running: the next state follows."""
        if not self.store.is_local and not self.thread.is_alive():
            self.thread = threading.Thread(
                target=put_optional, args=(self.store, self.number, STATE), daemon=True
            )
            self.thread.start()

    def wait(self) -> None:
        if self.thread.is_alive():
            self.thread.join()

    def discard(self) -> None:
        """Delete the state when a running upload has ended, without waiting for it."""

        def delete() -> None:
            self.wait()
            with suppress(*STORE_ERRORS):
                self.store.delete(self.number, STATE)

        if self.thread.is_alive():
            threading.Thread(target=delete, daemon=True).start()


class FoldProgress:
    """Results of a trial's finished trainings, stored so that the trial can be resumed.

    digest: of the trial's configuration.
    """

    def __init__(self, context: TrialContext, number: int, digest: str) -> None:
        self.store, self.number, self.digest = context.store, number, digest
        self.trainings = context.data.trainings
        self.max_epochs = context.spec.budget.epochs
        self.results: list[TrainResult] = []

    @property
    def has_folds(self) -> bool:
        """Whether the trial is a cross-validation."""
        return len(self.trainings) > 1

    @property
    def is_complete(self) -> bool:
        return len(self.results) == len(self.trainings)

    @property
    def epochs(self) -> int:
        return sum(len(result.history) for result in self.results)

    @property
    def seconds(self) -> float:
        return sum(result.seconds for result in self.results)

    def restore(self) -> dict[int, float]:
        """Load the folds of an earlier attempt; return the values that it reported by step."""
        # A file of folds without the first fold's weights is of no use.
        if not self.has_folds or not self.store.local_path(self.number, WEIGHTS).is_file():
            return {}
        path = self.store.local_path(self.number, FOLDS)
        self.results = cross_validation.load_results(path, self.digest)
        if not self.results or len(self.results) > len(self.trainings):
            self.results = []
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

    def write_history(self, current: Sequence[EpochRecord]) -> None:
        """Write a row per epoch of all trainings; folds have a column ``fold``."""
        rows = [
            ({"fold": fold} if self.has_folds else {}) | flatten_record(record)
            for fold, history in enumerate([*(r.history for r in self.results), current], 1)
            for record in history
        ]
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        atomic_write(self.store.local_path(self.number, HISTORY), text)

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
