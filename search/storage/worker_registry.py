"""The workers of a study: registration, heartbeats, and the command to all of them."""

from __future__ import annotations

import functools
import math
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from typing import Concatenate, ParamSpec, TypeVar

import optuna
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lesionseg.errors import InputError
from search.storage.lease_types import Claim, Command, HeartbeatReply, WorkerInfo
from search.storage.optuna_internals import study_id
from search.storage.process_id import ProcessId, current_process
from search.storage.retrying_storage import backend_of, retry_transient
from search.storage.study_rows import StudyRows
from search.storage.tables import WorkerRow, WorkerState
from search.storage.trial_records import StudyAttr
from search.trial_process.slot import Slot

#: Seconds without a heartbeat after which a worker counts as dead; the variable overrides it.
GRACE_S, GRACE_VARIABLE = 60.0, "LESIONSEARCH_GRACE"

#: States of workers that hold no lease.
GONE = frozenset({WorkerState.LOST, WorkerState.ENDED})

T = TypeVar("T")
R = TypeVar("R", bound="WorkerRegistry")
P = ParamSpec("P")


def in_transaction(
    *, lock: bool
) -> Callable[[Callable[Concatenate[R, StudyRows, P], T]], Callable[Concatenate[R, P], T]]:
    """Run a method in one transaction, whose ``rows`` it gets as its first argument.

    The method is repeated while the connection is lost. lock: keep other transactions on the
    study from running at the same time.
    """

    def decorate(
        operation: Callable[Concatenate[R, StudyRows, P], T],
    ) -> Callable[Concatenate[R, P], T]:
        @functools.wraps(operation)
        def method(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(lambda rows: operation(self, rows, *args, **kwargs), lock=lock)

        return method

    return decorate


class WorkerRegistry:
    """The part of ``TrialLeases`` that concerns workers."""

    def __init__(
        self,
        study: optuna.Study,
        *,
        grace_s: float | None = None,
        on_wait: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.study, self.on_wait = study, on_wait
        self.grace_s = _read_grace() if grace_s is None else grace_s
        self.storage = backend_of(study)
        self.connected_since = time.monotonic()

    @property
    def command(self) -> Command:
        """What all workers of the study are to do."""
        return self.run(_read_command, lock=False)

    @command.setter
    def command(self, command: Command) -> None:
        self.study.set_user_attr(StudyAttr.COMMAND, command)

    def register_worker(self, slot: Slot, process: ProcessId | None = None) -> WorkerInfo:
        """Register a worker; its ordinal distinguishes its sampler's seed from others'."""
        return self._add_worker(uuid.uuid4().hex, process or current_process(), slot)

    @in_transaction(lock=True)
    def _add_worker(self, rows: StudyRows, name: str, process: ProcessId, slot: Slot) -> WorkerInfo:
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
                **asdict(process),
                **asdict(slot),
            )
            rows.session.add(row)
        return worker_info(row, row.heartbeat_at)

    @in_transaction(lock=True)
    def deregister_worker(self, rows: StudyRows, worker: WorkerInfo) -> None:
        """Remove a worker that exits by itself and holds no trial any more."""
        rows.update_worker(worker, state=WorkerState.ENDED, trial_id=None, trial_number=None)

    @in_transaction(lock=False)
    def heartbeat(
        self, rows: StudyRows, worker: WorkerInfo, claim: Claim | None = None, epoch: int = 0
    ) -> HeartbeatReply:
        """Note that a worker lives and how far its trial is; return the command to it."""
        row = rows.session.get(WorkerRow, worker.id, with_for_update=True)
        has_lease = row is not None and row.state not in GONE
        if claim is not None:
            has_lease = has_lease and row is not None and row.trial_id == claim.trial_id
        if has_lease:
            rows.update_worker(worker, heartbeat_at=rows.now(), epoch=epoch)
        return HeartbeatReply(_read_command(rows), has_lease)

    @in_transaction(lock=False)
    def list_workers(self, rows: StudyRows) -> list[WorkerInfo]:
        """Return all registered workers, in the order in which they registered."""
        now = rows.now()
        return [worker_info(row, now) for row in rows.session.scalars(rows.select_workers())]

    def run(self, operation: Callable[[StudyRows], T], *, lock: bool = True) -> T:
        """Run an operation in one transaction, as the methods above do."""
        storage, start = self.storage, time.monotonic()

        def attempt() -> T:
            # Not Optuna's session of this thread: its own calls commit and close that one.
            with Session(storage.engine, expire_on_commit=False) as session, session.begin():
                rows = StudyRows(storage, study_id(self.study), session)
                if lock:
                    rows.lock()
                return operation(rows)

        result = retry_transient(
            attempt, stop_event=storage.stop_event, on_wait=self._waited, redact=storage.redact
        )
        # Other workers wait for the same lock, and could not send heartbeats meanwhile.
        if time.monotonic() - start > self.grace_s / 6:
            self.connected_since = time.monotonic()
        return result

    def _waited(self, message: str) -> None:
        self.connected_since = time.monotonic()
        self.on_wait(message)


def _read_command(rows: StudyRows) -> Command:
    return Command(rows.study_attr(StudyAttr.COMMAND, Command.RUN))


def worker_info(row: WorkerRow, now: float) -> WorkerInfo:
    """Return a worker's row as an object; now: by the database's clock."""
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
