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

import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState
from sqlalchemy import select
from sqlalchemy.orm import Session

from lesionseg.errors import InputError
from search.storage.lease_transaction import LeaseTransaction
from search.storage.lease_types import Claim, Command, HeartbeatReply, Refusal, WorkerInfo
from search.storage.optuna_internals import models, study_id
from search.storage.process_id import ProcessId, current_process
from search.storage.retrying_storage import SampledParam, backend_of, retry_transient
from search.storage.trial_records import EndReason, StudyAttr
from search.trial_process.slot import Slot

#: Seconds without a heartbeat after which a worker counts as dead; the variable overrides it.
GRACE_S, GRACE_VARIABLE = 60.0, "LESIONSEARCH_GRACE"

T = TypeVar("T")
#: Parameters and user attributes of a trial to be queued.
QueueEntry = tuple[Mapping[str, Any], Mapping[str, Any]]


class TrialLeases:
    """The workers, the queue and the leases of one study.

    grace_s: seconds without a heartbeat after which a worker counts as dead; all workers of a
    study should agree on it. on_wait: called when the database goes away and when it is back.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        grace_s: float | None = None,
        on_wait: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.study, self.on_wait = study, on_wait
        self.grace_s = _read_grace() if grace_s is None else grace_s
        self._storage = backend_of(study)
        self._connected_since = time.monotonic()

    @property
    def command(self) -> Command:
        """What all workers of the study are to do."""
        return self._run(LeaseTransaction.command, lock=False)

    @command.setter
    def command(self, command: Command) -> None:
        self.study.set_user_attr(StudyAttr.COMMAND, command)

    @property
    def connected_s(self) -> float:
        """For how many seconds the database has answered without a break."""
        return time.monotonic() - self._connected_since

    def initialize_study(self, attrs: Mapping[str, Any], queue: Sequence[QueueEntry]) -> bool:
        """Write a new study's attributes and its first trials; return False where it has them.

        Of several hosts that create one study at the same time, one initializes it.

        Args:
            attrs: user attributes, among them StudyAttr.SPEC.
            queue: parameters and user attributes of the first trials.
        """
        return self._run(lambda rows: rows.initialize_study(attrs, queue))

    def set_study_system_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Write Optuna's own attributes of the study, all or none."""
        self._run(lambda rows: rows.set_study_attrs(attrs, system=True), lock=False)

    # --- workers ---------------------------------------------------------------------------------

    def register_worker(self, slot: Slot, process: ProcessId | None = None) -> WorkerInfo:
        """Register a worker; its ordinal distinguishes its sampler's seed from others'."""
        process, name = process or current_process(), uuid.uuid4().hex
        return self._run(lambda rows: rows.register_worker(name, process, slot))

    def deregister_worker(self, worker: WorkerInfo) -> None:
        """Remove a worker that exits by itself and holds no trial any more."""
        self._run(lambda rows: rows.deregister_worker(worker))

    def heartbeat(
        self, worker: WorkerInfo, claim: Claim | None = None, epoch: int = 0
    ) -> HeartbeatReply:
        """Note that a worker lives and how far its trial is; return the command to it."""
        return self._run(lambda rows: rows.heartbeat(worker, claim, epoch), lock=False)

    def list_workers(self) -> list[WorkerInfo]:
        """Return all registered workers, in the order in which they registered."""
        return self._run(LeaseTransaction.list_workers, lock=False)

    def reap_expired(self) -> list[tuple[int, int | None]]:
        """Requeue the trials of dead workers; return old and new number of each.

        Silence counts as death only if this process has been connected for the whole grace
        period: after an outage of the database every worker was silent. A worker whose process is
        seen to have exited is expired at once.
        """
        return self._run(lambda rows: rows.reap_expired(self.grace_s, self.connected_s))

    # --- trials ----------------------------------------------------------------------------------

    def claim(
        self, worker: WorkerInfo, *, bounded: bool = True, fresh: bool = True
    ) -> Claim | Refusal:
        """Claim the next trial of the queue, or a new one, unless the budget has no room.

        Running trials count as finished, so that there are never more than the budget allows. The
        budget is read from the study: it may have changed since this worker started.

        Args:
            worker: gets the lease.
            bounded: whether the budget applies.
            fresh: whether a new trial may be added where the queue is empty.

        Raises:
            WorkerExpired: the worker was taken for dead; it must register again.
        """
        return self._run(lambda rows: rows.claim(worker, bounded=bounded, fresh=fresh))

    def collect_params(self) -> AbstractContextManager[list[SampledParam]]:
        """Collect the parameters that this thread samples, instead of writing each by itself."""
        return self._storage.collect_params()

    def record_config(
        self,
        claim: Claim,
        attrs: Mapping[str, Any],
        digest: str | None,
        params: Sequence[SampledParam] = (),
    ) -> int | None:
        """Write what a claimed trial is about to train, unless another trial has the digest.

        Args:
            claim: the trial.
            attrs: user attributes to write.
            digest: of the configuration; None where it may be trained more than once.
            params: the trial's sampled parameters, written in any case.

        Returns:
            The number of the trial that has the digest; None where the attributes were written.
        """
        return self._run(lambda rows: rows.record_config(claim, attrs, digest, params))

    def set_trial_attrs(self, claim: Claim, attrs: Mapping[str, Any]) -> None:
        """Write user attributes of a running trial, all or none."""
        self._run(lambda rows: rows.set_trial_attrs(claim.trial_id, attrs), lock=False)

    def record_epochs(self, claim: Claim, values: Mapping[int, float]) -> None:
        """Write the values of several epochs, over existing ones."""
        self._run(lambda rows: rows.record_epochs(claim.trial_id, values), lock=False)

    def finish(
        self,
        claim: Claim,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Close a trial with its value and attributes; return False where the lease was lost."""
        return self._run(
            lambda rows: rows.finish(claim, state, value, attrs or {}, system_attrs or {})
        )

    def requeue(self, claim: Claim, reason: EndReason) -> int | None:
        """Close an interrupted trial and queue its parameters again.

        Returns:
            The new number. None where the trial had ended; where it is closed as failed, having
            been lost too often; and where it had no parameters yet.
        """
        return self._run(lambda rows: rows.requeue_claimed(claim, reason))

    def enqueue(self, queue: Sequence[QueueEntry]) -> list[int]:
        """Queue trials, all or none, and once; return their numbers in that order."""
        first_id: list[int] = []
        numbers: list[int] = []

        def write(rows: LeaseTransaction) -> list[int]:
            self._storage.forget_unacknowledged(first_id)
            trial = models.TrialModel
            # They exist already where only the acknowledgement of an attempt was lost.
            if not first_id or rows.session.get(trial, first_id[0]) is None:
                numbers[:] = [rows.enqueue(params, attrs) for params, attrs in queue]
                ids = select(trial.trial_id).where(trial.study_id == rows.study_id)
                first_id[:] = rows.session.scalars(ids.where(trial.number.in_(numbers[:1])))
            return numbers

        return self._run(write)

    def count_trials(self) -> tuple[int, int]:
        """Count the trials that cost budget and have ended, and the running ones."""
        return self._run(LeaseTransaction.count_trials, lock=False)

    # --- one transaction -------------------------------------------------------------------------

    def _run(self, operation: Callable[[LeaseTransaction], T], *, lock: bool = True) -> T:
        """Run an operation in one transaction; repeat it while the connection is lost."""
        storage, start = self._storage, time.monotonic()

        def attempt() -> T:
            # Not Optuna's session of this thread: its own calls commit and close that one.
            with Session(storage.engine, expire_on_commit=False) as session, session.begin():
                rows = LeaseTransaction(storage, study_id(self.study), session)
                if lock:
                    rows.lock()
                return operation(rows)

        result = retry_transient(
            attempt, stop_event=storage.stop_event, on_wait=self._waited, redact=storage.redact
        )
        # Other workers wait for the same lock, and could not send heartbeats meanwhile.
        if time.monotonic() - start > self.grace_s / 6:
            self._connected_since = time.monotonic()
        return result

    def _waited(self, message: str) -> None:
        self._connected_since = time.monotonic()
        self.on_wait(message)


def _read_grace() -> float:
    """Return the grace period of the environment or the default; InputError if it is not > 0."""
    text = os.environ.get(GRACE_VARIABLE)
    if text is None:
        return GRACE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InputError(
            f"{GRACE_VARIABLE}: must be seconds above 0, got {text!r}; unset it for {GRACE_S:g}"
        )
    return seconds
