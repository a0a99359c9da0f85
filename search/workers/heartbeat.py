"""A worker's heartbeat: a thread that says it lives, hears orders and looks after the dead."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from search.storage.lease_types import Claim, Command, WorkerInfo
from search.storage.leases import TrialLeases
from search.storage.retrying_storage import StorageUnavailable
from search.trial_process.slot import Slot


class Heartbeat:
    """Beats while it is entered; what it hears is to be read from any thread.

    It beats from a thread of its own, so that a sampler that thinks for a minute does not look
    dead. It reaps too: the dead are found although nobody starts a trial.
    """

    def __init__(self, leases: TrialLeases, slot: Slot) -> None:
        self.leases, self.slot = leases, slot
        self.command = Command.RUN
        self._claim: Claim | None = None
        self._epoch = 0
        self._fenced = False
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._row: WorkerInfo | None = None
        self._thread: threading.Thread | None = None

    @property
    def row(self) -> WorkerInfo:
        """This worker in the books; it is entered anew where it was taken for dead."""
        with self._lock:
            if self._row is None:
                self._row = self.leases.register_worker(self.slot)
            return self._row

    @property
    def fenced(self) -> bool:
        """Whether the trial that is held was taken away."""
        return self._fenced

    def hold(self, claim: Claim | None) -> None:
        """From now on the beats are for this trial; None for none."""
        with self._lock:
            self._claim, self._epoch, self._fenced = claim, 0, False

    def at(self, epoch: int) -> None:
        """How far the trial is."""
        self._epoch = epoch

    def expired(self, row: WorkerInfo) -> None:
        """Others took this worker for dead: it comes again under a new name, unless it did so."""
        with self._lock:
            if self._row is row:
                self._row = None

    def beat(self) -> None:
        """One beat, from the caller's thread."""
        with self._lock:
            claim, row = self._claim, self.row
        orders = self.leases.heartbeat(row, claim, self._epoch)
        self.command = orders.command
        with self._lock:
            if orders.has_lease or claim is not self._claim:
                return
            if claim is None:
                self.expired(row)
            else:
                self._fenced = True

    def __enter__(self) -> Heartbeat:
        self._end.clear()
        _ = self.row
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end.set()
        assert self._thread is not None
        self._thread.join(timeout=5)
        if self._row is not None and not isinstance(error, StorageUnavailable):
            with suppress(StorageUnavailable):  # it goes all the same, and will be found to be gone
                self.leases.deregister_worker(self._row)
        self._row = None

    def _run(self) -> None:
        reaped = time.monotonic()
        while not self._end.wait(self.leases.grace_s / 6):
            try:
                self.beat()
                if time.monotonic() - reaped > self.leases.grace_s / 3:
                    reaped = time.monotonic()
                    self.leases.reap_expired()
            except (StorageUnavailable, SQLAlchemyError, KeyError):
                continue  # away, full or deleted: the worker's own calls will say so
