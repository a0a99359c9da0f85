"""One claimed trial's training: followed to its end, reported, pruned, kept, told."""

from __future__ import annotations

import csv
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.training.train import EpochRecord, TrainResult
from search.errors import JobFailed
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStore, ArtifactStoreUnavailable
from search.storage.lease_types import Claim
from search.storage.optuna_internals import cached_trial
from search.storage.retention import FOLDS, HISTORY, PICTURE, STATE, WEIGHTS
from search.study import cross_validation
from search.trial_process.protocol import (
    JobError,
    JobOutcome,
    ModelBuilt,
    Resumed,
    StateSaved,
    StepDone,
    Suspended,
    Trained,
    TrainJob,
    flatten_record,
)
from search.trial_process.supervisor import Limits, StopConditions, supervise

if TYPE_CHECKING:
    from search.workers.worker import Worker


class TrialRunner:
    """One claimed trial's training, with as many attempts as memory makes necessary.

    Of a cross-validation, one after the other of its trainings. The first one's weights are kept,
    and pictured. results: of those that are done; history: of the one at work.
    """

    def __init__(
        self, worker: Worker, claim: Claim, trial: optuna.Trial, config: TrialConfig
    ) -> None:
        self.worker, self.claim, self.trial, self.config = worker, claim, trial, config
        self.history: list[EpochRecord] = []
        self.results: list[TrainResult] = []
        self.parts, self.built = 1, False
        self.verdict: str | None = None
        self.uploads = StateUploader(worker.store, claim.number)
        self.trainings = worker.material.trainings

    def to_its_end(self) -> None:
        """Trains, and tells how it ended."""
        self._take_up_folds()
        while True:
            end = self._one_training()
            if self.verdict == "pruned":
                self.uploads.give_up()  # the state is of use to nobody, and a slot is waiting
            else:
                self.uploads.finish()
            if not isinstance(end, Trained):
                break
            self.results.append(end.result)
            if len(self.trainings) > 1 and self.verdict is None:
                self._between_folds()
            if self.verdict is not None or len(self.results) == len(self.trainings):
                break
        match end:
            case Trained():
                self._finish()
            case Suspended() if self.verdict == "pruned":
                self._told(TrialState.PRUNED)  # it was asked to leave when it had just been judged
            case Suspended():
                self._put_down()
            case JobError("disk", text):
                # Every other trial would fail of it too: this is no fault of the configuration.
                self.worker.put_back(self.claim)
                raise JobFailed(f"{text}; make room in {self.worker.store.root} and start again")
            case JobError() if self.verdict == trial_records.EndReason.CONSTRAINT:
                self._told(TrialState.PRUNED)
            case JobError(reason, text, trace):
                told = {"reason": reason, "message": text, "trace": trace[-4000:]}
                self._told(TrialState.FAIL, attrs=told)

    def _one_training(self) -> JobOutcome:
        while True:
            self.history = []
            end = supervise(self._job(), self._hear, self._limits(), self._watch())
            if not (isinstance(end, JobError) and end.reason == "oom" and self._can_halve()):
                return end
            self.parts *= 2
            self.worker.leases.set_trial_attrs(
                self.claim, {"parts": self.parts, "spared": end.message}
            )

    def _take_up_folds(self) -> None:
        """Folds that an earlier attempt brought to their end become this trial's own."""
        store, number = self.worker.store, self.claim.number
        if len(self.trainings) == 1 or not store.local_path(number, WEIGHTS).is_file():
            return
        self.results = cross_validation.load_results(store.local_path(number, FOLDS), self.config.digest())
        if not self.results:
            return
        values = {r.epoch: r.metrics.dice for r in self.results[0].history}
        for n in range(2, len(self.results) + 1):
            values[self._step(n)] = cross_validation.mean_dice(self.results[:n])
        self.worker.leases.record_epochs(self.claim, values)
        cached_trial(self.trial).intermediate_values.update(values)
        epochs = sum(len(result.history) for result in self.results)
        told = {"resumed_at": epochs, trial_records.TrialAttr.FOLDS: self._folds()}
        self.worker.leases.set_trial_attrs(self.claim, told)
        self._write([], begins=True)
        self.worker.heartbeat.at(epochs)

    def _between_folds(self) -> None:
        """Keeps what the fold gave, says it, and hears whether the trial is to go on."""
        store, number, done = self.worker.store, self.claim.number, len(self.results)
        if done < len(self.trainings):
            if done == 1:
                store.put(number, WEIGHTS)
                with suppress(
                    ArtifactStoreUnavailable, InputError, OSError
                ):  # there may be no picture
                    store.put(number, PICTURE)
            cross_validation.save_results(
                store.local_path(number, FOLDS), self.config.digest(), self.results
            )
            store.put(number, FOLDS)
            store.delete(number, STATE)  # of the fold that is done
        if done > 1:
            self._report(self._step(done), cross_validation.mean_dice(self.results))
        self.worker.leases.set_trial_attrs(
            self.claim, {trial_records.TrialAttr.FOLDS: self._folds()}
        )
        if 1 < done < len(self.trainings) and self.trial.should_prune():
            self.verdict = "pruned"
        elif done < len(self.trainings) and self._is_late():
            self.verdict = "time"

    def _step(self, done: int) -> int:
        """The step at which the mean over so many folds is reported."""
        return self.worker.spec.budget.epochs + done - 1

    def _folds(self) -> dict[str, Any]:
        whole = [result for result in self.results if result.stopped != "asked"]
        return cross_validation.summarize_folds(whole, len(self.trainings))

    def _put_down(self) -> None:
        store, number = self.worker.store, self.claim.number
        if store.local_path(number, STATE).is_file():  # else it begins anew
            store.put(number, STATE)
        self.worker.put_back(self.claim)

    def _can_halve(self) -> bool:
        """Whether a batch can be computed in twice as many parts, its meaning unchanged."""
        return self.config.accumulate * self.parts * 2 <= self.config.batch_size

    def _job(self) -> TrainJob:
        material, slot, place = self.worker.material, self.worker.slot, self.worker.store.local_path
        train, val = self.trainings[len(self.results)]
        kept = not self.results
        return TrainJob(
            self.config.to_dict(),
            material.cache,
            train,
            val,
            slot.device,
            slot.threads,
            save_to=place(self.claim.number, WEIGHTS) if kept else None,
            state=place(self.claim.number, STATE),
            parts=self.parts,
            share=slot.share,
            program=self.worker.program,
            imports=self.worker.imports,
            picture=place(self.claim.number, PICTURE) if kept else None,
        )

    def _limits(self) -> Limits:
        budget, memory = self.worker.spec.budget, self.worker.slot.memory_gb
        return Limits(
            seconds=budget.trial_minutes and budget.trial_minutes * 60,
            stall=budget.stall_minutes and budget.stall_minutes * 60,
            memory=None if memory is None else int(memory * 1e9),
            spent=sum(result.seconds for result in self.results),
        )

    def _watch(self) -> StopConditions:
        worker = self.worker
        return StopConditions(
            suspend=lambda: worker.stopping.is_set() or worker.heartbeat.command != "run",
            fenced=lambda: worker.heartbeat.fenced,
        )

    def _hear(self, message: Any) -> bool:
        """Takes in what the child says; whether it shall stop."""
        match message:
            case ModelBuilt():
                self.verdict = self._refused(message)
            case Resumed(history):
                self._take_up(history)
            case EpochRecord():
                self._record([message])
                if not self.results:
                    self._report(message.epoch, message.metrics.dice)
                self.worker.listener.epoch_ended(self.claim.number, message)
                self.verdict = self._stop(message)
            case StateSaved():
                self.uploads.state()
            case StepDone():
                pass  # that it was said is all
        return self.verdict is not None

    def _report(self, step: int, dice: float) -> None:
        known = cached_trial(self.trial).intermediate_values
        if step in known:  # of an attempt that memory did not suffice for
            self.worker.leases.record_epochs(self.claim, {step: dice})
            known[step] = dice
            return
        self.trial.report(dice, step)

    def _take_up(self, history: Sequence[EpochRecord]) -> None:
        """Epochs of an earlier attempt become this trial's own."""
        before = sum(len(result.history) for result in self.results)
        self.worker.leases.set_trial_attrs(self.claim, {"resumed_at": before + len(history)})
        if self.results:
            self._record(history)
        elif history:
            values = {r.epoch: r.metrics.dice for r in history}
            self.worker.leases.record_epochs(self.claim, values)
            cached_trial(self.trial).intermediate_values.update(values)
            self._record(history)

    def _refused(self, built: ModelBuilt) -> str | None:
        attrs: dict[str, Any] = {"params": built.params, "macs": built.macs}
        limits = self.worker.spec.constraints
        told = []
        for key, value, limit, what in (
            ("max_params_m", built.params / 1e6, limits.max_params_m, "million parameters"),
            ("max_gmacs", built.macs / 1e9, limits.max_gmacs, "billion multiply-adds an image"),
        ):
            if limit is None:
                continue
            if not self.built:
                self.trial.set_constraint(key, value - limit)
            # The dashboard shows user attributes and does not see Optuna's constraints.
            attrs[f"constraint.{key}"] = round(value - limit, 6)
            if value > limit:
                told.append(f"{value:.2f} {what}; constraints.{key} is {limit:g}")
        if told:
            attrs |= {"reason": trial_records.EndReason.CONSTRAINT, "message": "; ".join(told)}
        self.built = True
        self.worker.leases.set_trial_attrs(self.claim, attrs)
        return trial_records.EndReason.CONSTRAINT if told else None

    def _stop(self, record: EpochRecord) -> str | None:
        last = len(self.results) + 1 == len(self.trainings)
        if record.epoch == self.worker.spec.budget.epochs and last:
            return None  # it has run its course: nothing is saved by stopping it
        if not self.results and self.trial.should_prune():
            return "pruned"
        return "time" if self._is_late() else None

    def _is_late(self) -> bool:
        # Out of time: the first complete trial is let through, or there would be no result.
        known = self.worker.deadline() and trial_records.rank_trials(
            trial_records.all_trials(self.worker.study)
        )
        return bool(known)

    def _finish(self) -> None:
        results = self.results
        attrs: dict[str, Any] = {
            "best_epoch": cross_validation.mean_epoch(results),
            "epochs": sum(len(result.history) for result in results),
            "val": cross_validation.mean_metrics(results),
            "seconds": round(sum(result.seconds for result in results), 3),
            "peak_memory": max(result.peak_memory for result in results),
        }
        if len(self.trainings) > 1:
            attrs[trial_records.TrialAttr.FOLDS] = self._folds()
        if any(result.stopped == "early" for result in results):
            attrs["reason"] = "early stopping"
        if self.verdict == "time":
            attrs["reason"] = self.verdict
        if self.verdict is not None:
            self._told(TrialState.PRUNED, attrs=attrs)
            return
        self.worker.store.put(self.claim.number, WEIGHTS)
        self._told(TrialState.COMPLETE, cross_validation.mean_dice(results), attrs)

    def _told(
        self, state: TrialState, value: float | None = None, attrs: dict[str, Any] | None = None
    ) -> None:
        store, files = self.worker.store, []
        if self.history or self.results:  # one that is refused before training has none
            store.put(self.claim.number, HISTORY)
            files.append(HISTORY)
        with suppress(ArtifactStoreUnavailable, InputError, OSError):  # there may be no picture
            store.put(self.claim.number, PICTURE)
            files.append(PICTURE)
        self.worker.told(self.claim, state, value, attrs, files)

    def _record(self, records: Sequence[EpochRecord]) -> None:
        """Adds epochs to the history file; the first ones begin it anew."""
        self._write(records, begins=not self.history)
        self.history += records
        before = sum(len(result.history) for result in self.results)
        self.worker.heartbeat.at(before + len(self.history))

    def _write(self, records: Sequence[EpochRecord], *, begins: bool) -> None:
        path = self.worker.store.local_path(self.claim.number, HISTORY)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file that begins anew holds all epochs of the folds before.
        earlier = enumerate((result.history for result in self.results), 1) if begins else ()
        rows = [self._row(fold, record) for fold, history in earlier for record in history]
        rows += [self._row(len(self.results) + 1, record) for record in records]
        with path.open("w" if begins else "a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if begins:
                writer.writeheader()
            writer.writerows(rows)

    def _row(self, fold: int, record: EpochRecord) -> dict[str, Any]:
        return ({"fold": fold} if len(self.trainings) > 1 else {}) | flatten_record(record)


class StateUploader:
    """Takes states to where other hosts can get them, beside the training; the latest only."""

    def __init__(self, store: ArtifactStore, number: int) -> None:
        self.store, self.number = store, number
        self.thread: threading.Thread | None = None

    def state(self) -> None:
        """There is a new state."""
        if self.store.is_local or (self.thread is not None and self.thread.is_alive()):
            return
        self.thread = threading.Thread(target=self._put, daemon=True)
        self.thread.start()

    def _put(self) -> None:
        # The next state tries again; what must arrive is put by the worker itself.
        with suppress(ArtifactStoreUnavailable, InputError, OSError):
            self.store.put(self.number, STATE)

    def finish(self) -> None:
        """Waits for what is under way."""
        if self.thread is not None:
            self.thread.join()

    def give_up(self) -> None:
        """Waits for nothing; what is under way is dropped when it has arrived."""
        under_way = self.thread
        if under_way is None or not under_way.is_alive():
            return

        def drop() -> None:
            under_way.join()
            with suppress(ArtifactStoreUnavailable, InputError, OSError):
                self.store.delete(self.number, STATE)

        threading.Thread(target=drop, daemon=True).start()
