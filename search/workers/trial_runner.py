"""The training of one claimed trial, from its first message to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import optuna
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.training.types import EpochRecord
from search.errors import JobFailed
from search.storage.lease_types import Claim, Command
from search.storage.optuna_internals import cached_trial
from search.storage.retention import HISTORY, PICTURE, STATE, WEIGHTS
from search.storage.trial_records import EndReason, TrialAttr, all_trials, rank_trials
from search.trial_process import protocol
from search.trial_process.supervisor import LeaseLost, StopConditions, supervise_in_parts
from search.workers.failure_streak import CACHE_DAMAGED
from search.workers.trial_context import TrialContext
from search.workers.trial_progress import (
    FoldProgress,
    StateUploader,
    finish_trial,
    put_optional,
    requeue_trial,
)


class StopCause(StrEnum):
    """Why a training is stopped before its last epoch."""

    PRUNED = "pruned"
    OUT_OF_TIME = "time"
    CONSTRAINT = "constraint"


class TrialRunner:
    """Runs one claimed trial.

    A trial is one training, or one per fold of a cross-validation; each is repeated with smaller
    parts of a batch while memory does not suffice. The first fold's weights and picture are kept.
    """

    def __init__(
        self, context: TrialContext, claim: Claim, trial: optuna.Trial, config: TrialConfig
    ) -> None:
        self.context, self.claim, self.trial, self.config = context, claim, trial, config
        self.folds = FoldProgress(context, claim.number, config.digest())
        self.uploader = StateUploader(context.store, claim.number)
        self.history: list[EpochRecord] = []  # of the current training
        self.accumulation_factor = 1
        self.stop: StopCause | None = None

    def run(self) -> None:
        """Train the trial, and finish or requeue it.

        Raises:
            LeaseLost: another worker holds the trial.
            JobFailed: the disk or the device fails; the trial was requeued.
        """
        try:
            self._run()
        except FileNotFoundError:
            # The next worker deletes the files of a trial that this one has lost.
            self.context.heartbeat.send()
            if self.context.heartbeat.lease_lost:
                raise LeaseLost("another worker holds the trial") from None
            raise

    def _run(self) -> None:
        values = self.folds.restore()
        if values:  # folds that an earlier attempt finished
            self._report(values)
            self._set_attrs({"resumed_at": self.folds.epochs, **self.folds.fold_attrs()})
            self._record([])
        match self._train_all():
            case protocol.Trained():
                self._finish_trained()
            case protocol.Suspended() if self.stop == StopCause.PRUNED:
                self._finish(TrialState.PRUNED)  # suspended just after the pruner's decision
            case protocol.Suspended(epoch, saved):
                text = f"its state could not be saved in time; it resumes after epoch {epoch}"
                self._requeue(None if saved else text)
            case protocol.JobError() if self.stop == StopCause.CONSTRAINT:
                self._finish(TrialState.PRUNED)
            # The configuration is not the reason of these errors: other trials would fail as well.
            case protocol.JobError(protocol.ErrorReason.DISK, message):
                self._requeue(message)
                root = self.context.store.root
                raise JobFailed(
                    f"{message}; make room in {root}, or repair the disk, and start again"
                )
            case protocol.JobError(protocol.ErrorReason.DEVICE, message):
                self._requeue(message)
                device = self.context.slot.device
                raise JobFailed(
                    f"{device} or its driver fails: {message}; the trial is requeued; "
                    f"repair the device and start again"
                )
            case protocol.JobError() if not self.context.opened.cache.is_unchanged():
                self._requeue(CACHE_DAMAGED)
            case protocol.JobError(reason, message, trace):
                attrs = {"reason": reason, "message": message, "trace": trace[-4000:]}
                self._finish(TrialState.FAIL, attrs=attrs)

    def _requeue(self, message: str | None) -> None:
        """Queue the trial again, with its latest state; without one it starts again."""
        if message is not None:
            self._set_attrs({TrialAttr.MESSAGE: message})
        if self.context.store.local_path(self.claim.number, STATE).is_file():
            self.context.store.put(self.claim.number, STATE)
        requeue_trial(self.context, self.claim)

    # --- trainings -------------------------------------------------------------------------------

    def _train_all(self) -> protocol.JobOutcome:
        while True:
            outcome = self._train_in_parts()
            if self.stop == StopCause.PRUNED:
                self.uploader.discard()  # nobody needs the state, and the slot is needed
            else:
                self.uploader.wait()
            if not isinstance(outcome, protocol.Trained):
                return outcome
            self.folds.results.append(outcome.result)
            self.history = []
            if self.folds.has_folds and self.stop is None:
                self._end_fold()
            if self.stop is not None or self.folds.is_complete:
                return outcome

    def _train_in_parts(self) -> protocol.JobOutcome:
        """Run one training; compute batches in more parts while memory does not suffice."""
        context, budget = self.context, self.context.spec.budget
        memory_gb = context.slot.memory_gb
        conditions = StopConditions(
            total_s=budget.trial_minutes and budget.trial_minutes * 60,
            stall_s=budget.stall_minutes and budget.stall_minutes * 60,
            memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
            elapsed_s=self.folds.seconds,
            suspend=lambda: context.stop_event.is_set() or context.heartbeat.command != Command.RUN,
            lease_lost=lambda: context.heartbeat.lease_lost,
        )

        def repeat(factor: int, message: str) -> None:
            self.history, self.accumulation_factor = [], factor
            self._set_attrs({"accumulation_factor": factor, "oom_message": message})

        self.history = []
        return supervise_in_parts(self._job(), self._on_message, conditions, repeat)

    def _job(self) -> protocol.TrainJob:
        context, number = self.context, self.claim.number
        train, val = self.folds.trainings[len(self.folds.results)]
        is_first = not self.folds.results
        return protocol.TrainJob(
            self.config.to_dict(),
            context.data.cache,
            train,
            val,
            context.slot,
            weights_path=context.store.local_path(number, WEIGHTS) if is_first else None,
            state_path=context.store.local_path(number, STATE),
            accumulation_factor=self.accumulation_factor,
            picture_path=context.store.local_path(number, PICTURE) if is_first else None,
            program=context.program,
            imports=context.imports,
        )

    # --- messages of the training ----------------------------------------------------------------

    def _on_message(self, message: Any) -> bool:
        """Handle a message of the training process; return whether it must stop."""
        match message:
            case protocol.ModelBuilt():
                self._check_constraints(message)
            case protocol.Resumed(history):
                self._restore_epochs(history)
            case EpochRecord():
                self._record([message])
                if not self.folds.results:
                    self._report({message.epoch: message.metrics.dice})
                self.context.listener.epoch_ended(self.claim.number, message)
                self.stop = self._check_stop(message)
            case protocol.StateSaved():
                self.uploader.start()
        return self.stop is not None

    def _check_constraints(self, model: protocol.ModelBuilt) -> None:
        """Write a model's size; stop the trial if it violates a constraint of the study."""
        attrs: dict[str, Any] = {"params": model.params, "macs": model.macs}
        limits, violations = self.context.spec.constraints, []
        for key, value, limit, unit in (
            ("max_params_m", model.params / 1e6, limits.max_params_m, "million parameters"),
            ("max_gmacs", model.macs / 1e9, limits.max_gmacs, "billion multiply-adds an image"),
        ):
            if limit is None:
                continue
            if key not in self.trial.constraints:  # it is set once
                self.trial.set_constraint(key, value - limit)
            # The dashboard shows user attributes, but not Optuna's constraints.
            attrs[f"constraint.{key}"] = round(value - limit, 6)
            if value > limit:
                violations.append(f"{value:.2f} {unit}; constraints.{key} is {limit:g}")
        if violations:
            attrs |= {"reason": EndReason.CONSTRAINT, "message": "; ".join(violations)}
            self.stop = StopCause.CONSTRAINT
        self._set_attrs(attrs)

    def _check_stop(self, record: EpochRecord) -> StopCause | None:
        is_last = len(self.folds.results) + 1 == len(self.folds.trainings)
        if is_last and self._is_last_epoch(record):
            return None  # nothing is saved by stopping after the last epoch
        if not self.folds.results and self.trial.should_prune():
            return StopCause.PRUNED
        return StopCause.OUT_OF_TIME if self._is_out_of_time() else None

    def _is_last_epoch(self, record: EpochRecord) -> bool:
        """Return whether the training ends after this epoch by itself."""
        best = max(self.history, key=lambda each: each.metrics.dice)
        is_early = 0 < self.config.patience <= record.epoch - best.epoch
        return is_early or record.epoch == self.config.epochs

    def _is_out_of_time(self) -> bool:
        # The first complete trial may exceed the time: without it there would be no result.
        return self.context.is_out_of_time() and bool(rank_trials(all_trials(self.context.study)))

    def _record(self, records: Sequence[EpochRecord]) -> None:
        """Add epochs to the history file and to the heartbeat."""
        self.history += records
        self.folds.write_history(self.history)
        self.context.heartbeat.epoch = self.folds.epochs + len(self.history)

    def _report(self, values: Mapping[int, float]) -> None:
        """Report values by step, over those of an attempt that ran out of memory.

        ``trial.report`` is not used: it could write to a trial that another worker is closing.
        """
        self.context.leases.record_epochs(self.claim, values)
        cached_trial(self.trial).intermediate_values.update(values)

    def _restore_epochs(self, history: Sequence[EpochRecord]) -> None:
        """Restore the epochs of the training that an earlier attempt saved."""
        self._set_attrs({"resumed_at": self.folds.epochs + len(history)})
        if history and not self.folds.results:
            self._report({record.epoch: record.metrics.dice for record in history})
        if history or self.folds.results:
            self._record(history)

    def _set_attrs(self, attrs: Mapping[str, Any]) -> None:
        self.context.leases.set_trial_attrs(self.claim, attrs)

    def _end_fold(self) -> None:
        """Store a finished fold, report the mean of the folds and decide whether to continue."""
        is_first = len(self.folds.results) == 1
        if not self.folds.is_complete:
            self.folds.save()
        if not is_first:
            self._report(dict([self.folds.mean()]))
        self._set_attrs(self.folds.fold_attrs())
        if self.folds.is_complete:
            return
        if not is_first and self.trial.should_prune():
            self.stop = StopCause.PRUNED
        elif self._is_out_of_time():
            self.stop = StopCause.OUT_OF_TIME

    # --- ends ------------------------------------------------------------------------------------

    def _finish_trained(self) -> None:
        attrs = self.folds.result_attrs()
        if self.stop == StopCause.OUT_OF_TIME:
            attrs["reason"] = EndReason.OUT_OF_TIME
        if self.stop is not None:
            self._finish(TrialState.PRUNED, attrs=attrs)
            return
        self.context.store.put(self.claim.number, WEIGHTS)
        _, dice = self.folds.mean()
        self._finish(TrialState.COMPLETE, dice, attrs)

    def _finish(
        self, state: TrialState, value: float | None = None, attrs: dict[str, Any] | None = None
    ) -> None:
        store, number, files = self.context.store, self.claim.number, []
        if epochs := self.folds.epochs + len(self.history):
            attrs = {TrialAttr.EPOCHS: epochs} | (attrs or {})
            store.put(number, HISTORY)
            files.append(HISTORY)
        if put_optional(store, number, PICTURE):
            files.append(PICTURE)
        finish_trial(self.context, self.claim, state, value, attrs, files)
