"""Which worker holds which trial: claims, leases, heartbeats and requeues.

Each operation is one transaction, where Optuna's own calls are single writes. Claiming a trial,
counting the budget and noting the owner happen together, and so do closing a lost trial and
queueing it again. If a process is killed in between, the database holds the state before or after.

The study's row is locked during a transaction, as Optuna locks it to number a new trial; SQLite
locks the whole file. A worker's row holds its lease: the trial that it may write, and its latest
heartbeat by the database's clock, so that the clocks of hosts do not matter. A trial that is
requeued is closed and queued under another number. A worker that lost its lease without knowing
finds the old number closed, and the storage refuses its writes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import select

from search.storage.lease_types import Claim, Refusal, WorkerExpired, WorkerInfo
from search.storage.optuna_internals import models
from search.storage.retrying_storage import SampledParam
from search.storage.study_rows import StudyRows
from search.storage.tables import WorkerRow, WorkerState
from search.storage.trial_records import REQUEUED, EndReason, StudyAttr, TrialAttr
from search.storage.worker_registry import GONE, WorkerRegistry, in_transaction, worker_info

#: Parameters and user attributes of a trial to be queued.
QueueEntry = tuple[Mapping[str, Any], Mapping[str, Any]]


class TrialLeases(WorkerRegistry):
    """The workers, the queue and the leases of one study.

    grace_s: seconds without a heartbeat after which a worker counts as dead; all workers of a
    study should agree on it. on_wait: called when the database goes away and when it is back.
    """

    @in_transaction(lock=True)
    def initialize_study(
        self, rows: StudyRows, attrs: Mapping[str, Any], queue: Sequence[QueueEntry]
    ) -> bool:
        """Write a new study's attributes and its first trials; return False where it has them.

        Of several hosts that create one study at the same time, one initializes it. The attributes
        include StudyAttr.SPEC.
        """
        if rows.study_attr(StudyAttr.SPEC) is not None:
            return False
        rows.set_study_attrs(attrs)
        for params, trial_attrs in queue:
            rows.enqueue(params, trial_attrs)
        return True

    @in_transaction(lock=False)
    def set_study_system_attrs(self, rows: StudyRows, attrs: Mapping[str, Any]) -> None:
        """Write Optuna's own attributes of the study, all or none."""
        rows.set_study_attrs(attrs, system=True)

    @in_transaction(lock=True)
    def reap_expired(self, rows: StudyRows) -> list[tuple[int, int | None]]:
        """Requeue the trials of dead workers; return old and new number of each.

        Silence counts as death only if this process has been connected for the whole grace
        period: after an outage of the database every worker was silent. A worker whose process is
        seen to have exited is expired at once.
        """
        now, is_listening = rows.now(), time.monotonic() - self.connected_since > self.grace_s
        held, last_heartbeat = set(), {}
        for row in rows.session.scalars(rows.select_workers().with_for_update()).all():
            is_silent = is_listening and now - row.heartbeat_at > self.grace_s
            if is_silent or worker_info(row, now).process.has_exited():
                last_heartbeat[row.trial_id] = row.heartbeat_at
                row.state, row.trial_id, row.trial_number = WorkerState.LOST, None, None
            else:
                held.add(row.trial_id)
        # No claim is in progress: this transaction holds the lock on the study.
        lost = [trial for trial in rows.running_trials() if trial.trial_id not in held]
        return [
            (t.number, rows.requeue(t, EndReason.LOST, last_heartbeat.get(t.trial_id, now)))
            for t in lost
        ]

    @in_transaction(lock=True)
    def claim(
        self, rows: StudyRows, worker: WorkerInfo, *, bounded: bool = True, fresh: bool = True
    ) -> Claim | Refusal:
        """Claim the next trial of the queue, or a new one, unless the budget has no room.

        Running trials count as finished, so that there are never more than the budget allows. The
        budget is read from the study: it may have changed since this worker started. bounded:
        whether the budget applies. fresh: whether a trial is added where the queue is empty.

        Raises:
            WorkerExpired: the worker was taken for dead; it must register again.
        """
        row = rows.session.get(WorkerRow, worker.id)
        if row is None or row.state in GONE:
            raise WorkerExpired(worker.id)
        if row.trial_id is not None:  # claimed by an attempt whose acknowledgement was lost
            return Claim(row.trial_id, row.trial_number or 0)
        finished, running = rows.count_trials()
        if bounded:
            budget = rows.study_attr(StudyAttr.SPEC)["budget"]["trials"]
            if finished + running >= budget:
                return Refusal.SPENT if finished >= budget else Refusal.FULL
        trial = rows.next_waiting()
        if trial is None and not fresh:
            return Refusal.FULL if running else Refusal.SPENT
        return rows.start_trial(trial or rows.add_running_trial(), worker)

    def collect_params(self) -> AbstractContextManager[list[SampledParam]]:
        """Collect the parameters that this thread samples, instead of writing each by itself."""
        return self.storage.collect_params()

    @in_transaction(lock=True)
    def record_config(
        self,
        rows: StudyRows,
        claim: Claim,
        attrs: Mapping[str, Any],
        digest: str | None,
        params: Sequence[SampledParam] = (),
    ) -> int | None:
        """Write what a claimed trial is about to train, unless another trial has the digest.

        attrs: user attributes. digest: of the configuration; None where it may be trained more
        than once. params: the trial's sampled parameters, written in any case.

        Returns:
            The number of the trial that has the digest; None where the attributes were written.
        """
        rows.write_params(claim.trial_id, params)
        duplicate = None if digest is None else rows.find_duplicate(claim, digest)
        if duplicate is None:
            rows.set_trial_attrs(claim.trial_id, attrs)
        return duplicate

    @in_transaction(lock=False)
    def set_trial_attrs(self, rows: StudyRows, claim: Claim, attrs: Mapping[str, Any]) -> None:
        """Write user attributes of a running trial, all or none."""
        rows.set_trial_attrs(claim.trial_id, attrs)

    @in_transaction(lock=False)
    def record_epochs(self, rows: StudyRows, claim: Claim, values: Mapping[int, float]) -> None:
        """Write the values of several epochs, over existing ones."""
        for epoch, value in values.items():
            self.storage.add_intermediate_value(rows.session, claim.trial_id, epoch, value)

    @in_transaction(lock=True)
    def finish(
        self,
        rows: StudyRows,
        claim: Claim,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Close a trial with its value and attributes; return False where the lease was lost."""
        trial = rows.lock_trial(claim.trial_id)
        if trial.state.is_finished():  # by this very call, if its acknowledgement was lost
            reason = rows.trial_attrs(claim.trial_id).get(TrialAttr.REASON)
            return bool(trial.state == state) and reason not in REQUEUED
        rows.set_trial_attrs(claim.trial_id, {**(attrs or {}), TrialAttr.ENDED_AT: rows.now()})
        rows.set_trial_attrs(claim.trial_id, system_attrs or {}, system=True)
        if value is not None:
            self.storage.add_value(rows.session, trial, value)
        rows.close_trial(trial, state)
        return True

    @in_transaction(lock=True)
    def requeue(self, rows: StudyRows, claim: Claim, reason: EndReason) -> int | None:
        """Close an interrupted trial and queue its parameters again.

        Returns:
            The new number. None where the trial had ended; where it is closed as failed, having
            been lost too often; and where it had no parameters yet.
        """
        trial = rows.lock_trial(claim.trial_id)
        return None if trial.state.is_finished() else rows.requeue(trial, reason, rows.now())

    def enqueue(self, queue: Sequence[QueueEntry]) -> list[int]:
        """Queue trials, all or none, and once; return their numbers in that order."""
        first_id: list[int] = []
        numbers: list[int] = []

        def write(rows: StudyRows) -> list[int]:
            self.storage.forget_unacknowledged(first_id)
            trial = models.TrialModel
            # They exist already where only the acknowledgement of an attempt was lost.
            if not first_id or rows.session.get(trial, first_id[0]) is None:
                numbers[:] = [rows.enqueue(params, attrs) for params, attrs in queue]
                ids = select(trial.trial_id).where(trial.study_id == rows.study_id)
                first_id[:] = rows.session.scalars(ids.where(trial.number.in_(numbers[:1])))
            return numbers

        return self.run(write)

    @in_transaction(lock=False)
    def count_trials(self, rows: StudyRows) -> tuple[int, int]:
        """Count the trials that cost budget and have ended, and the running ones."""
        return rows.count_trials()
