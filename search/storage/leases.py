"""Which worker holds which trial: claims, leases, heartbeats and requeues.

Each operation is one transaction, where Optuna's own calls are single writes. Claiming a trial,
counting the budget and noting the owner happen together, and so do closing a lost trial and
queueing it again. If a process is killed in between, the database holds the state before or after.

The study's row is locked during a transaction, as Optuna locks it to number a new trial; SQLite
locks the whole file. A worker's row holds its lease: the trial that it may write, and its latest
heartbeat. A worker is dead if another process sees the same heartbeat for the whole grace period of
its own monotonic clock: the wall clocks of hosts and database have no effect. A
trial that is requeued is closed and queued under another number. A worker that lost its lease
without knowing finds the old number closed, and the storage refuses its writes.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from search.storage.lease_types import (
    Claim,
    Command,
    ProcessId,
    Refusal,
    WorkerExpired,
    current_process,
    read_grace_s,
)
from search.storage.optuna_internals import models, study_id
from search.storage.retrying_storage import SampledParam, backend_of
from search.storage.study_rows import StudyRows
from search.storage.tables import GONE, WorkerRow, WorkerState
from search.storage.trial_records import REQUEUED, EndReason, StudyAttr, TrialAttr
from search.trial_process.slot import Slot

#: Parameters and user attributes of a trial to be queued.
QueueEntry = tuple[Mapping[str, Any], Mapping[str, Any]]

T = TypeVar("T")
P = ParamSpec("P")
_Operation = Callable[Concatenate["TrialLeases", StudyRows, P], T]


def _in_transaction(
    *, lock: bool
) -> Callable[[_Operation[P, T]], Callable[Concatenate[TrialLeases, P], T]]:
    """Run a method in one transaction, whose ``rows`` it gets; see ``TrialLeases.run``."""

    def decorate(operation: _Operation[P, T]) -> Callable[Concatenate[TrialLeases, P], T]:
        @functools.wraps(operation)
        def method(self: TrialLeases, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(lambda rows: operation(self, rows, *args, **kwargs), lock=lock)

        return method

    return decorate


class TrialLeases:
    """The workers, the queue and the leases of one study.

    grace_s: seconds without a heartbeat after which a worker counts as dead; all workers of a
    study should agree on it. on_wait: called when the database becomes unavailable and when it is
    available again; None for that of the storage. clock: returns monotonic seconds.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        grace_s: float | None = None,
        on_wait: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.on_wait, self.clock = study, on_wait, clock
        self.grace_s = read_grace_s() if grace_s is None else grace_s
        self.storage = backend_of(study)
        self.connected_since = self._reaped_at = clock()
        #: By worker, its latest heartbeat and when this process first saw it.
        self._heartbeats: dict[str, tuple[float, float]] = {}

    @property
    def command(self) -> Command:
        """What all workers of the study are to do."""
        return self.run(_read_command, lock=False)

    @command.setter
    def command(self, command: Command) -> None:
        self.study.set_user_attr(StudyAttr.COMMAND, command)

    def register_worker(self, slot: Slot, process: ProcessId | None = None) -> WorkerRow:
        """Register a worker; its ordinal distinguishes its sampler's seed from others'."""
        return self._add_worker(uuid.uuid4().hex, process or current_process(), slot)

    @_in_transaction(lock=True)
    def _add_worker(self, rows: StudyRows, name: str, process: ProcessId, slot: Slot) -> WorkerRow:
        row = rows.session.get(WorkerRow, name)
        if row is None:  # otherwise an attempt whose acknowledgement was lost added it
            of_study = select(func.count()).where(WorkerRow.study_id == rows.study_id)
            row = WorkerRow(
                id=name,
                study_id=rows.study_id,
                ordinal=rows.session.scalar(of_study) or 0,
                state=WorkerState.IDLE,
                epoch=0,
                heartbeat_at=rows.now(),
                process=process,
                slot=slot,
            )
            rows.session.add(row)
        return row

    @_in_transaction(lock=True)
    def deregister_worker(self, rows: StudyRows, worker: WorkerRow) -> None:
        """Remove a worker that exits by itself and holds no trial any more."""
        if row := rows.session.get(WorkerRow, worker.id):
            row.state, row.trial_id, row.trial = WorkerState.ENDED, None, None

    @_in_transaction(lock=False)
    def heartbeat(
        self, rows: StudyRows, worker: WorkerRow, claim: Claim | None = None, epoch: int = 0
    ) -> tuple[Command, bool]:
        """Record a heartbeat and the trial's epoch.

        Returns:
            The current command, and whether the worker is registered and still holds its trial.
        """
        row = rows.session.get(WorkerRow, worker.id, with_for_update=True)
        if row is None or row.state in GONE or (claim and row.trial_id != claim.trial_id):
            return _read_command(rows), False
        row.heartbeat_at, row.epoch = rows.now(), epoch
        return _read_command(rows), True

    @_in_transaction(lock=False)
    def record_training_time(self, rows: StudyRows, claim: Claim) -> None:
        """Record the study's training time until now, unless the trial has ended.

        It is not part of the heartbeat's transaction, which would lock the worker before the trial:
        ``finish`` locks them in the other order.
        """
        with suppress(UpdateFinishedTrialError):
            rows.set_trial_attrs(claim.trial_id, self._training_end(claim))

    def _training_end(self, claim: Claim) -> dict[str, Any]:
        return {TrialAttr.TRAINING_END: claim.training_s + self.clock() - claim.claimed_at}

    @_in_transaction(lock=False)
    def list_workers(self, rows: StudyRows) -> list[WorkerRow]:
        return list(rows.session.scalars(rows.select_workers()))

    @_in_transaction(lock=True)
    def initialize_study(
        self, rows: StudyRows, attrs: Mapping[str, Any], queue: Sequence[QueueEntry]
    ) -> bool:
        """Write a new study's attributes and its first trials; return False if it has them.

        Of several hosts that create one study at the same time, one initializes it. The attributes
        include StudyAttr.SPEC.
        """
        if rows.study_attr(StudyAttr.SPEC) is not None:
            return False
        # Workers of a deleted study with the same id: SQLite does not enforce foreign keys.
        rows.session.execute(delete(WorkerRow).where(WorkerRow.study_id == rows.study_id))
        rows.set_study_attrs(attrs)
        for params, trial_attrs in queue:
            rows.enqueue(params, trial_attrs)
        return True

    @_in_transaction(lock=False)
    def set_study_system_attrs(self, rows: StudyRows, attrs: Mapping[str, Any]) -> None:
        """Write Optuna's own attributes of the study, all or none."""
        rows.set_study_attrs(attrs, system=True)

    @_in_transaction(lock=True)
    def reap_expired(self, rows: StudyRows) -> list[tuple[int, int | None]]:
        """Requeue the trials of dead workers; return old and new number of each.

        A missing heartbeat counts only if this process has been running and connected for the whole
        grace period: during an outage of the database or a suspension of the host no worker sends
        heartbeats. A worker whose process has exited is expired at once.
        """
        if self.clock() - self._reaped_at > 2 / 3 * self.grace_s:
            self.connected_since = self.clock()  # this process was suspended
        self._reaped_at = self.clock()
        now, held, last_heartbeat = rows.now(), set(), {}
        workers = rows.session.scalars(rows.select_workers().with_for_update()).all()
        known, self._heartbeats = self._heartbeats, {}
        for row in workers:
            heartbeat, seen_at = known.get(row.id, (None, 0.0))
            seen_at = seen_at if heartbeat == row.heartbeat_at else self.clock()
            self._heartbeats[row.id] = row.heartbeat_at, seen_at
            is_silent = self.clock() - max(seen_at, self.connected_since) > self.grace_s
            if is_silent or row.process.has_exited():
                last_heartbeat[row.trial_id] = row.heartbeat_at
                row.state, row.trial_id, row.trial = WorkerState.LOST, None, None
            else:
                held.add(row.trial_id)
        # No claim is in progress: this transaction holds the lock on the study.
        lost = [trial for trial in rows.running_trials() if trial.trial_id not in held]
        return [
            (t.number, rows.requeue(t, EndReason.LOST, last_heartbeat.get(t.trial_id, now)))
            for t in lost
        ]

    @_in_transaction(lock=True)
    def claim(
        self, rows: StudyRows, worker: WorkerRow, *, bounded: bool = True, fresh: bool = True
    ) -> Claim | Refusal:
        """Claim the next trial of the queue, or a new one, unless the budget has no room.

        Running trials count as finished, so that there are never more than the budget allows. The
        budget is read from the study: it may have changed since this worker started. bounded:
        whether the budget applies. fresh: whether a trial is added where the queue is empty.

        Raises:
            WorkerExpired: the worker was marked as lost; it must register again.
        """
        row = rows.session.get(WorkerRow, worker.id)
        if row is None or row.state in GONE:
            raise WorkerExpired(worker.id)
        if row.trial_id is not None:  # claimed by an attempt whose acknowledgement was lost
            start = rows.read_trial(row.trial_id).user_attrs.get(TrialAttr.TRAINING_START, 0.0)
            return Claim(row.trial_id, row.trial or 0, start, self.clock())
        finished, running = rows.count_trials()
        if bounded:
            budget = rows.study_attr(StudyAttr.SPEC)["budget"]["trials"]
            if finished + running >= budget:
                return Refusal.SPENT if finished >= budget else Refusal.FULL
        trial = rows.next_waiting()
        if trial is None and not fresh:
            return Refusal.FULL if running else Refusal.SPENT
        trial = trial or self.storage.add_trial(rows.study_id, None, rows.session)
        return replace(rows.start_trial(trial, worker), claimed_at=self.clock())

    @_in_transaction(lock=True)
    def record_config(
        self,
        rows: StudyRows,
        claim: Claim,
        attrs: Mapping[str, Any],
        digest: str | None,
        params: Sequence[SampledParam] = (),
    ) -> int | None:
        """Write what a claimed trial is about to train, unless another trial has the digest.

        attrs: user attributes. digest: of the configuration; None if it may be trained more
        than once. params: the trial's sampled parameters, written in any case.

        Returns:
            The number of the trial that has the digest; None if the attributes were written.
        """
        rows.write_params(claim.trial_id, params)
        duplicate = None if digest is None else rows.find_duplicate(claim, digest)
        if duplicate is None:
            rows.set_trial_attrs(claim.trial_id, attrs)
        return duplicate

    @_in_transaction(lock=False)
    def set_trial_attrs(self, rows: StudyRows, claim: Claim, attrs: Mapping[str, Any]) -> None:
        rows.set_trial_attrs(claim.trial_id, attrs)

    @_in_transaction(lock=False)
    def record_epochs(self, rows: StudyRows, claim: Claim, values: Mapping[int, float]) -> None:
        """Write the values of several epochs, over existing ones."""
        rows.lock_trial(claim.trial_id)  # otherwise it could end between check and write
        for epoch, value in values.items():
            self.storage.add_intermediate_value(rows.session, claim.trial_id, epoch, value)

    @_in_transaction(lock=True)
    def finish(
        self,
        rows: StudyRows,
        claim: Claim,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Close a trial with its value and attributes; return False if the lease was lost."""
        trial = rows.lock_trial(claim.trial_id)
        if trial.state.is_finished():  # by this very call, if its acknowledgement was lost
            reason = rows.read_trial(claim.trial_id).user_attrs.get(TrialAttr.REASON)
            return bool(trial.state == state) and reason not in REQUEUED
        ends = {TrialAttr.ENDED_AT: rows.now(), **self._training_end(claim)}
        rows.set_trial_attrs(claim.trial_id, {**(attrs or {}), **ends})
        rows.set_trial_attrs(claim.trial_id, system_attrs or {}, system=True)
        if value is not None:
            self.storage.add_value(rows.session, trial, 0, value)
        rows.close_trial(trial, state)
        return True

    @_in_transaction(lock=True)
    def requeue(self, rows: StudyRows, claim: Claim, reason: EndReason) -> int | None:
        """Close an interrupted trial and queue its parameters again.

        Returns:
            The new number. None if the trial had ended; where it is closed as failed, having
            been lost too often; and where it had no parameters yet.
        """
        trial = rows.lock_trial(claim.trial_id)
        if trial.state.is_finished():
            return None
        rows.set_trial_attrs(claim.trial_id, self._training_end(claim))
        return rows.requeue(trial, reason, rows.now())

    def enqueue(self, queue: Sequence[QueueEntry]) -> list[int]:
        """Queue trials, all or none, and once; return their numbers in that order."""
        added: list[tuple[int, int]] = []  # ids and numbers; the acknowledgement may be lost

        def attempt(rows: StudyRows) -> list[int]:
            if self.storage.engine.name == "sqlite":
                # It has not done what it did not acknowledge, and gives the ids to other rows.
                added.clear()
            if not added or rows.session.get(models.TrialModel, added[0][0]) is None:
                trials = [rows.enqueue(params, attrs) for params, attrs in queue]
                added[:] = [(trial.trial_id, trial.number) for trial in trials]
            return [number for _, number in added]

        return self.run(attempt)

    def run(self, operation: Callable[[StudyRows], T], *, lock: bool = True) -> T:
        """Run an operation in one transaction, repeatedly while the connection is lost.

        lock: keep other transactions on the study from running at the same time.
        """
        storage, start = self.storage, self.clock()

        def attempt() -> T:
            # Not Optuna's session of this thread: its own calls commit and close that one.
            with Session(storage.engine, expire_on_commit=False) as session, session.begin():
                rows = StudyRows(storage, study_id(self.study), session)
                if lock:
                    models.StudyModel.find_or_raise_by_id(rows.study_id, session, for_update=True)
                return operation(rows)

        result = storage.retry_transient(attempt, on_wait=self._waited)
        # Other workers wait for the same lock, and could not send heartbeats meanwhile.
        if self.clock() - start > self.grace_s / 6:
            self.connected_since = self.clock()
        return result

    def _waited(self, message: str) -> None:
        self.connected_since = self.clock()
        if notify := self.on_wait or self.storage.on_wait:
            notify(message)


def _read_command(rows: StudyRows) -> Command:
    return Command(rows.study_attr(StudyAttr.COMMAND, Command.RUN))
