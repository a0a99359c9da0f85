"""Who works on which trial: claims, leases, beats and hand-backs, each in one transaction.

Optuna's own calls are single writes; what must not be torn apart is made of several. Taking a
trial out of the queue, counting the budget and noting whose it is are one transaction here, and
so are closing a lost trial and queueing it again. A process may be killed between any two lines
of this file: the database then holds what was before or what comes after.

The study's row is locked meanwhile, as Optuna locks it to number a new trial; SQLite locks the
whole file. A worker's row holds its lease: the trial it may speak for, and its last beat by the
database's own clock, so that the clocks of hosts do not matter. A trial that is handed on is
closed and queued anew under another number. So whoever lost a lease and does not know it yet
finds the old number closed, and the storage itself refuses what it says.

The names with an underscore that are used here are Optuna 5's; tests hold them.
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState
from sqlalchemy import select
from sqlalchemy.orm import Session

from lesionseg.errors import InputError
from search.storage import schema as tables
from search.storage import trial_records
from search.storage.lease_transaction import (
    Claim,
    Command,
    HeartbeatReply,
    LeaseTransaction,
    Refusal,
    WorkerExpired,
    WorkerInfo,
    seen,
)
from search.storage.optuna_internals import models
from search.storage.process_id import ProcessId, current_process
from search.storage.retrying_storage import Drawn, backend_of, retry_transient
from search.trial_process.slot import Slot

__all__ = [
    "Claim",
    "Command",
    "HeartbeatReply",
    "Refusal",
    "TrialLeases",
    "WorkerExpired",
    "WorkerInfo",
]

#: Seconds without a beat after which a worker counts as dead, and where another number is said.
GRACE, GRACE_VARIABLE = 60.0, "LESIONSEARCH_GRACE"

T = TypeVar("T")


class TrialLeases:
    """The books of one study.

    grace: seconds without a beat after which a worker counts as dead; all workers of a study
    should agree on it. on_wait: told when the database goes away and when it is back.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        grace: float | None = None,
        on_wait: Callable[[str], None] = lambda told: None,
    ) -> None:
        self.study, self.on_wait = study, on_wait
        self.grace = _grace() if grace is None else grace
        self._study_id = study._study_id
        self._storage = backend = backend_of(study)
        self._troubled = time.monotonic()
        retry_transient(lambda: tables.create(backend.engine), stopping=backend.stopping)

    def found(
        self, attrs: Mapping[str, Any], queue: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> bool:
        """Gives a new study its attributes and its first trials; False where it has them already.

        attrs must hold "spec". Of several hosts that make one study at once, one founds it.
        """

        def write(books: LeaseTransaction) -> bool:
            if books.study_attr("spec", None) is not None:
                return False
            books.set_study_attrs(attrs)
            for params, queued in queue:
                books.queue(params, queued)
            return True

        return self._whole(write)

    # --- workers ---------------------------------------------------------------------------------

    def join(self, slot: Slot, who: ProcessId | None = None) -> WorkerInfo:
        """Enters a worker into the books; its ordinal tells its sampler's seed from the others'."""
        who, name = who or current_process(), uuid.uuid4().hex

        def enter(books: LeaseTransaction) -> WorkerInfo:
            there = books.session.get(tables.Worker, name)
            if there is None:
                row = {"id": name, "study_id": self._study_id, "state": "idle", "epoch": 0}
                row |= {"ordinal": books.enrolled(), "beat": books.now()}
                there = tables.Worker(**row, **asdict(who), **asdict(slot))
                books.session.add(there)
            return seen(there, there.beat)

        return self._whole(enter)

    def leave(self, worker: WorkerInfo) -> None:
        """Takes a worker that goes by itself off the books; it holds no trial any more."""
        self._whole(lambda books: books.set(worker, state="ended", trial_id=None, trial=None))

    def beat(
        self, worker: WorkerInfo, claim: Claim | None = None, epoch: int = 0
    ) -> HeartbeatReply:
        """Says that a worker lives; what it is told in return."""

        def tick(books: LeaseTransaction) -> HeartbeatReply:
            row = books.session.get(tables.Worker, worker.id, with_for_update=True)
            held = row is not None and row.state not in {"lost", "ended"}
            if held and claim is not None:
                held = row is not None and row.trial_id == claim.trial_id
            if held:
                books.set(worker, beat=books.now(), epoch=epoch)
            return HeartbeatReply(books.command(), held)

        return self._whole(tick, lock=False)

    def workers(self) -> list[WorkerInfo]:
        """Every worker that has not left, in the order of their coming."""

        def read(books: LeaseTransaction) -> list[WorkerInfo]:
            now = books.now()
            return [seen(row, now) for row in books.workers()]

        return self._whole(read, lock=False)

    # --- what all workers are told ---------------------------------------------------------------

    @property
    def command(self) -> Command:
        """run, pause or stop."""
        return self._whole(LeaseTransaction.command, lock=False)

    @command.setter
    def command(self, value: Command) -> None:
        self.study.set_user_attr(trial_records.StudyAttr.COMMAND, value)

    # --- trials ----------------------------------------------------------------------------------

    def claim(
        self, worker: WorkerInfo, *, bounded: bool = True, fresh: bool = True
    ) -> Claim | Refusal:
        """Takes the next trial of the queue, or a new one, unless the budget has no room.

        The budget is the study's as it is now, also where it was changed since this worker came;
        bounded=False asks nobody. Trials at work count as if they were done already, so that no
        moment sees more of them than were asked for. fresh=False takes from the queue only.
        Raises Expired where the worker is not in the books any more.
        """

        def take(books: LeaseTransaction) -> Claim | Refusal:
            held = books.session.get(tables.Worker, worker.id)
            if held is None or held.state in {"lost", "ended"}:
                raise WorkerExpired(worker.id)
            if held.trial_id is not None:  # the answer got lost on its way
                return Claim(held.trial_id, held.trial or 0)
            spent, running = books.counted()
            if bounded:
                budget = books.study_attr("spec", {})["budget"]["trials"]
                if spent + running >= budget:
                    return "spent" if spent >= budget else "full"
            trial = books.next_waiting()
            if trial is None and not fresh:
                return "full" if running else "spent"
            return books.start(trial or books.new(), worker)

        return self._whole(take)

    def gathering(self) -> AbstractContextManager[list[Drawn]]:
        """Within it, what this thread draws is not written, but to be given to ``configure``."""
        return self._storage.gathering()

    def configure(
        self,
        claim: Claim,
        attrs: Mapping[str, Any],
        digest: str | None,
        drawn: Sequence[Drawn] = (),
    ) -> int | None:
        """Notes what a claimed trial is about to train, unless another one has it.

        digest: of a configuration that must be trained once only; None for one that may be
        repeated. drawn: its parameters, which are noted in any case. Returns the number of the
        trial that has it, or None where it was noted.
        """

        def note(books: LeaseTransaction) -> int | None:
            books.draw(claim.trial_id, drawn)
            twin = None if digest is None else books.twin(claim, digest)
            if twin is None:
                books.attrs(claim.trial_id, attrs)
            return twin

        return self._whole(note)

    def note(self, claim: Claim, attrs: Mapping[str, Any]) -> None:
        """Writes attributes of a trial at work, all or none."""
        self._whole(lambda books: books.attrs(claim.trial_id, attrs), lock=False)

    def report(self, claim: Claim, values: Mapping[int, float]) -> None:
        """Writes the values of several epochs, over those that are there."""

        def write(books: LeaseTransaction) -> None:
            for step, value in values.items():
                self._storage._set_trial_intermediate_value_without_commit(
                    books.session, claim.trial_id, step, value
                )

        self._whole(write, lock=False)

    def finish(
        self,
        claim: Claim,
        state: TrialState,
        value: float | None = None,
        attrs: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
    ) -> bool:
        """Brings a trial to its end with all that is said of it; False where the lease was lost.

        attrs, system: user attributes, and Optuna's own.
        """

        def end(books: LeaseTransaction) -> bool:
            trial = books.locked(claim.trial_id)
            if trial.state.is_finished():  # by another, unless it was this very call before
                reason = books.reason(claim.trial_id)
                return bool(trial.state == state) and reason not in trial_records.REQUEUED
            books.attrs(claim.trial_id, {**(attrs or {}), "ended": books.now()})
            books.system_attrs(claim.trial_id, system or {})
            if value is not None:
                self._storage._set_trial_value_without_commit(books.session, trial, 0, value)
            books.close(trial, state)
            return True

        return self._whole(end)

    def describe(self, attrs: Mapping[str, Any]) -> None:
        """Writes Optuna's own attributes of the study, all or none."""
        self._whole(lambda books: books.describe(attrs), lock=False)

    def requeue(self, claim: Claim, reason: str, *, epoch: int = 0) -> int | None:
        """Closes a trial that was cut off and queues it again; the number it goes on under.

        None, with nothing done, where it had reached its end; and where it was lost for the last
        time, or there is nothing to repeat: it is closed for good then.
        """

        def hand_on(books: LeaseTransaction) -> int | None:
            trial = books.locked(claim.trial_id)
            if trial.state.is_finished():
                return None
            return books.hand_on(trial, reason, books.now())

        return self._whole(hand_on)

    def enqueue(self, params: Mapping[str, Any], attrs: Mapping[str, Any] | None = None) -> int:
        """Puts a trial into the queue; its number."""
        return self._whole(lambda books: books.queue(params, attrs or {}))

    def reap(self) -> list[tuple[int, int | None]]:
        """Hands on the trials of workers that are gone; (number, number it goes on under) of each.

        A worker is taken for dead by its silence only by one who could have heard it all the
        while: after the database was away, everyone was silent. One whose process is seen to have
        ended is not waited for.
        """
        return self._whole(lambda books: books.reap(self.grace, self.healthy))

    @property
    def healthy(self) -> float:
        """For how many seconds the database has answered without a break."""
        return time.monotonic() - self._troubled

    def counted(self) -> tuple[int, int]:
        """Trials that count against the budget: with an end of their own, and at work."""
        return self._whole(LeaseTransaction.counted, lock=False)

    def enqueue_all(
        self, queue: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> list[int]:
        """Puts trials into the queue, all or none, and once; their numbers, in that order."""
        made: list[int] = []
        numbers: list[int] = []

        def write(books: LeaseTransaction) -> list[int]:
            self._storage._forget(made)
            trial = models.TrialModel
            # They are there already where only the answer got lost on its way.
            if not made or books.session.get(trial, made[0]) is None:
                numbers[:] = [books.queue(params, attrs) for params, attrs in queue]
                first = select(trial.trial_id).where(trial.study_id == self._study_id)
                made[:] = books.session.scalars(first.where(trial.number.in_(numbers[:1])))
            return numbers

        return self._whole(write)

    # --- one transaction -------------------------------------------------------------------------

    def _whole(self, work: Callable[[LeaseTransaction], T], *, lock: bool = True) -> T:
        """Runs it in one transaction, again and again while the connection is lost."""

        def once() -> T:
            # Not Optuna's own session of this thread: its calls commit and close that.
            with Session(self._storage.engine, expire_on_commit=False) as session, session.begin():
                books = LeaseTransaction(self._storage, self._study_id, session)
                if lock:
                    books.lock()
                return work(books)

        storage, began = self._storage, time.monotonic()
        done = retry_transient(
            once, stopping=storage.stopping, on_wait=self._waited, hide=storage.hide
        )
        # Whoever waits that long for a lock does so with others, who could not beat meanwhile.
        if time.monotonic() - began > self.grace / 6:
            self._troubled = time.monotonic()
        return done

    def _waited(self, told: str) -> None:
        self._troubled = time.monotonic()
        self.on_wait(told)


def _grace() -> float:
    """Of the environment, if it says; InputError where that is no number above 0."""
    said = os.environ.get(GRACE_VARIABLE)
    if said is None:
        return GRACE
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InputError(
            f"{GRACE_VARIABLE}: must be seconds above 0, got {said!r}; unset it for {GRACE:g}"
        )
    return seconds
