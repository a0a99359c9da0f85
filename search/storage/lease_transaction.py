"""The operations of ``TrialLeases``, each within one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import func, select, update

from search.storage.lease_types import (
    Claim,
    Command,
    HeartbeatReply,
    Refusal,
    WorkerExpired,
    WorkerInfo,
)
from search.storage.optuna_internals import Row, models
from search.storage.process_id import ProcessId
from search.storage.retrying_storage import SampledParam
from search.storage.study_rows import StudyRows
from search.storage.tables import WorkerRow, WorkerState
from search.storage.trial_records import (
    CLOSED_WITHOUT_COST,
    QUEUE_ATTRS,
    REQUEUED,
    EndReason,
    StudyAttr,
    TrialAttr,
)
from search.trial_process.slot import Slot

#: How often a trial may be lost with its worker and still be requeued.
MAX_LOSSES = 3
#: Attempts whose numbers a requeued trial remembers: one of them has its last checkpoint.
MAX_ATTEMPTS = 8

_GONE = (WorkerState.LOST, WorkerState.ENDED)
_FREE = {"trial_id": None, "trial_number": None}


class LeaseTransaction(StudyRows):
    """A study's rows with the operations of ``TrialLeases``, where each is described."""

    def initialize_study(
        self, attrs: Mapping[str, Any], queue: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> bool:
        """Write a new study's attributes and queue, unless it has them."""
        if self.study_attr(StudyAttr.SPEC) is not None:
            return False
        self.set_study_attrs(attrs)
        for params, trial_attrs in queue:
            self.enqueue(params, trial_attrs)
        return True

    def command(self) -> Command:
        """Return the command to all workers."""
        return Command(self.study_attr(StudyAttr.COMMAND, Command.RUN))

    # --- workers ---------------------------------------------------------------------------------

    def register_worker(self, name: str, process: ProcessId, slot: Slot) -> WorkerInfo:
        """Add a worker's row, unless an unacknowledged attempt added it."""
        row = self.session.get(WorkerRow, name)
        if row is None:
            of_study = select(func.count()).where(WorkerRow.study_id == self.study_id)
            row = WorkerRow(
                id=name,
                study_id=self.study_id,
                ordinal=self.session.scalar(of_study) or 0,
                state=WorkerState.IDLE,
                epoch=0,
                heartbeat_at=self.now(),
                **asdict(process),
                **asdict(slot),
            )
            self.session.add(row)
        return _worker_info(row, row.heartbeat_at)

    def deregister_worker(self, worker: WorkerInfo) -> None:
        """Mark a worker as ended."""
        self._update_worker(worker, state=WorkerState.ENDED, **_FREE)

    def heartbeat(self, worker: WorkerInfo, claim: Claim | None, epoch: int) -> HeartbeatReply:
        """Note that a worker lives, unless it has lost its lease."""
        row = self.session.get(WorkerRow, worker.id, with_for_update=True)
        has_lease = row is not None and row.state not in _GONE
        if claim is not None:
            has_lease = has_lease and row is not None and row.trial_id == claim.trial_id
        if has_lease:
            self._update_worker(worker, heartbeat_at=self.now(), epoch=epoch)
        return HeartbeatReply(self.command(), has_lease)

    def list_workers(self) -> list[WorkerInfo]:
        """Return all registered workers by ordinal."""
        now = self.now()
        return [_worker_info(row, now) for row in self.session.scalars(self._registered())]

    # --- trials ----------------------------------------------------------------------------------

    def claim(self, worker: WorkerInfo, *, bounded: bool, fresh: bool) -> Claim | Refusal:
        """Give a worker the next trial, if the budget has room."""
        row = self.session.get(WorkerRow, worker.id)
        if row is None or row.state in _GONE:
            raise WorkerExpired(worker.id)
        if row.trial_id is not None:  # claimed by an attempt whose acknowledgement was lost
            return Claim(row.trial_id, row.trial_number or 0)
        finished, running = self.count_trials()
        if bounded:
            budget = self.study_attr(StudyAttr.SPEC)["budget"]["trials"]
            if finished + running >= budget:
                return Refusal.SPENT if finished >= budget else Refusal.FULL
        trial = self.next_waiting()
        if trial is None and not fresh:
            return Refusal.FULL if running else Refusal.SPENT
        return self.start_trial(trial or self.add_running_trial(), worker)

    def start_trial(self, trial: Row, worker: WorkerInfo) -> Claim:
        """Give a worker the lease on a trial."""
        now = self.now()
        trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
        attrs = {TrialAttr.OWNER: worker.owner(), TrialAttr.STARTED_AT: now}
        self.set_trial_attrs(trial.trial_id, attrs)
        lease = {"trial_id": trial.trial_id, "trial_number": trial.number}
        self._update_worker(worker, **lease, state=WorkerState.TRAINING, heartbeat_at=now, epoch=0)
        return Claim(trial.trial_id, trial.number)

    def record_config(
        self,
        claim: Claim,
        attrs: Mapping[str, Any],
        digest: str | None,
        params: Sequence[SampledParam],
    ) -> int | None:
        """Write parameters, and attributes unless another trial has the digest; return that one."""
        self.write_params(claim.trial_id, params)
        duplicate = None if digest is None else self._find_duplicate(claim, digest)
        if duplicate is None:
            self.set_trial_attrs(claim.trial_id, attrs)
        return duplicate

    def finish(
        self,
        claim: Claim,
        state: TrialState,
        value: float | None,
        attrs: Mapping[str, Any],
        system_attrs: Mapping[str, Any],
    ) -> bool:
        """Close a trial with its result, unless another worker has it."""
        trial = self.lock_trial(claim.trial_id)
        if trial.state.is_finished():  # by this very call, if its acknowledgement was lost
            reason = self.trial_attr(claim.trial_id, TrialAttr.REASON)
            return bool(trial.state == state) and reason not in REQUEUED
        self.set_trial_attrs(claim.trial_id, {**attrs, TrialAttr.ENDED_AT: self.now()})
        self.set_trial_attrs(claim.trial_id, system_attrs, system=True)
        if value is not None:
            self.storage.add_value(self.session, trial, value)
        self.close_trial(trial, state)
        return True

    def requeue_claimed(self, claim: Claim, reason: EndReason) -> int | None:
        """Requeue a claimed trial, unless it has ended."""
        trial = self.lock_trial(claim.trial_id)
        return None if trial.state.is_finished() else self.requeue(trial, reason, self.now())

    def requeue(self, trial: Row, reason: EndReason, ended_at: float) -> int | None:
        """Close a running trial and queue its parameters again; return the new number, if any."""
        attrs = self.trial_attrs(trial.trial_id)
        times_lost = attrs.get(TrialAttr.TIMES_LOST, 0) + (reason == EndReason.LOST)
        result: dict[str, Any] = {TrialAttr.REASON: reason, TrialAttr.ENDED_AT: ended_at}
        successor = None
        if times_lost > MAX_LOSSES:
            message = f"its worker died with it {times_lost} times"
            result |= {TrialAttr.REASON: EndReason.CRASH, TrialAttr.MESSAGE: message}
        else:
            successor = self._enqueue_again(trial, attrs, times_lost)
        if successor is not None:
            result[TrialAttr.REQUEUED_AS] = successor
        self.set_trial_attrs(trial.trial_id, result)
        self.close_trial(trial, TrialState.FAIL)
        return successor

    def reap_expired(self, grace_s: float, connected_s: float) -> list[tuple[int, int | None]]:
        """Expire dead workers and requeue the running trials that no live worker holds."""
        now = self.now()
        held, last_heartbeat = set(), {}
        for row in self.session.scalars(self._registered().with_for_update()).all():
            is_silent = now - row.heartbeat_at > grace_s and connected_s > grace_s
            if is_silent or _worker_info(row, now).process.has_exited():
                last_heartbeat[row.trial_id] = row.heartbeat_at
                row.state, row.trial_id, row.trial_number = WorkerState.LOST, None, None
            else:
                held.add(row.trial_id)
        # No claim is in progress: this transaction holds the lock on the study.
        return [
            (
                trial.number,
                self.requeue(trial, EndReason.LOST, last_heartbeat.get(trial.trial_id, now)),
            )
            for trial in self.running_trials()
            if trial.trial_id not in held
        ]

    def running_trials(self) -> Sequence[Row]:
        """Return the rows of all running trials by number."""
        trial = models.TrialModel
        running = select(trial).where(
            trial.study_id == self.study_id, trial.state == TrialState.RUNNING
        )
        return self.session.scalars(running.order_by(trial.number)).all()

    def count_trials(self) -> tuple[int, int]:
        """Count the trials that cost budget and have ended, and the running ones."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        of_study = trial.study_id == self.study_id
        states = select(trial.state, func.count()).where(of_study).group_by(trial.state)
        by_state = {state: count for state, count in self.session.execute(states)}  # noqa: C416
        without_cost = self.session.scalar(
            select(func.count())
            .select_from(trial)
            .join(attr, attr.trial_id == trial.trial_id)
            .where(of_study, attr.key == TrialAttr.REASON)
            .where(attr.value_json.in_(sorted(map(json.dumps, CLOSED_WITHOUT_COST))))
            .where(trial.state.in_([TrialState.PRUNED, TrialState.FAIL]))
        )
        ended = sum(count for state, count in by_state.items() if state.is_finished())
        return ended - (without_cost or 0), by_state.get(TrialState.RUNNING, 0)

    # --- steps -----------------------------------------------------------------------------------

    def _registered(self) -> Any:
        return (
            select(WorkerRow)
            .where(WorkerRow.study_id == self.study_id, WorkerRow.state.not_in(_GONE))
            .order_by(WorkerRow.ordinal)
        )

    def _update_worker(self, worker: WorkerInfo, **values: Any) -> None:
        row = update(WorkerRow).where(WorkerRow.id == worker.id)
        self.session.execute(row.values(**values))

    def _enqueue_again(self, trial: Row, attrs: Mapping[str, Any], times_lost: int) -> int | None:
        """Queue a trial's parameters or fixed configuration; None where it has neither yet."""
        params = self.params(trial.trial_id)
        if not params and TrialAttr.FIXED_CONFIG not in attrs:
            return None
        inherited = {k: v for k, v in attrs.items() if k in QUEUE_ATTRS | {TrialAttr.DIGEST}}
        attempts = [*attrs.get(TrialAttr.ATTEMPTS, []), trial.number][-MAX_ATTEMPTS:]
        inherited[TrialAttr.ATTEMPTS] = attempts
        inherited[TrialAttr.REQUEUED_FROM] = attrs.get(TrialAttr.REQUEUED_FROM, trial.number)
        if times_lost:
            inherited[TrialAttr.TIMES_LOST] = times_lost
        return self.enqueue(params, inherited)

    def _find_duplicate(self, claim: Claim, digest: str) -> int | None:
        """Return the number of another trial with this configuration that is not skipped."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        rows = self.session.execute(
            select(trial.number, trial.trial_id)
            .join(attr, attr.trial_id == trial.trial_id)
            .where(trial.study_id == self.study_id, trial.trial_id != claim.trial_id)
            .where(attr.key == TrialAttr.DIGEST, attr.value_json == json.dumps(digest))
            .order_by(trial.number)
        )
        for number, trial_id in rows:
            if self.trial_attr(trial_id, TrialAttr.REASON) not in CLOSED_WITHOUT_COST:
                return int(number)
        return None


def _worker_info(row: WorkerRow, now: float) -> WorkerInfo:
    return WorkerInfo(
        id=row.id,
        process=ProcessId(row.host, row.pid, row.start_time, row.pid_namespace),
        slot=Slot(row.device, row.threads, row.share, row.memory_gb),
        state=row.state,
        trial=row.trial_number,
        epoch=row.epoch,
        heartbeat_age_s=max(0.0, now - row.heartbeat_at),
        ordinal=row.ordinal,
    )
