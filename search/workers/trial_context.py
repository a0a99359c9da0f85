"""What a worker needs to run trials of one study, and its heartbeat thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.data.cache import restore_cache
from lesionseg.errors import InputError
from lesionseg.models import MODELS, required_imports
from lesionseg.training.types import EpochRecord
from search.errors import WorkerBlocked
from search.storage.lease_types import Claim, Command
from search.storage.leases import TrialLeases
from search.storage.retrying_storage import StorageUnavailable, StudyDeleted
from search.storage.tables import WorkerRow
from search.study.opening import OpenStudy
from search.trial_process.protocol import CHILD_PROGRAM
from search.trial_process.slot import Slot


class TrialListener(Protocol):
    """Receives the progress of trials; the command line shows it.

    best: the best complete trial so far.
    """

    def trial_started(self, number: int, config: TrialConfig) -> None: ...

    def epoch_ended(self, number: int, record: EpochRecord) -> None: ...

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None: ...


class Heartbeat:
    """Sends heartbeats, reads the command to all workers and reaps expired workers.

    It runs in its own thread, so that a worker with a slow sampler does not expire, and expired
    workers are found even if no trial starts. Attributes may be read from any thread.
    """

    def __init__(self, leases: TrialLeases, slot: Slot) -> None:
        self.leases, self.slot = leases, slot
        self.command = Command.RUN
        self.lease_lost = False
        self.epoch = 0
        self._claim: Claim | None = None
        self._worker: WorkerRow | None = None
        self._lock = threading.RLock()
        self._stop_event = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def worker(self) -> WorkerRow:
        """This worker's registration; a new one if the previous one expired."""
        with self._lock:
            if self._worker is None:
                self._worker = self.leases.register_worker(self.slot)
            return self._worker

    def set_claim(self, claim: Claim | None) -> None:
        with self._lock:
            self._claim, self.epoch, self.lease_lost = claim, 0, False

    def expire(self, worker: WorkerRow) -> None:
        """Drop an expired registration, unless it was replaced already."""
        with self._lock:
            if self._worker is worker:
                self._worker = None

    def record_training_time(self) -> None:
        """Record the training time of the claimed trial, if there is one."""
        with self._lock:
            claim = self._claim
        if claim is not None:
            self.leases.record_training_time(claim)

    def send(self) -> None:
        """Send one heartbeat from the calling thread."""
        with self._lock:
            claim, worker = self._claim, self.worker
        self.command, has_lease = self.leases.heartbeat(worker, claim, self.epoch)
        with self._lock:
            if claim is not self._claim:
                return
            if not has_lease and claim is None:
                self.expire(worker)
            elif not has_lease:
                self.lease_lost = True
        if has_lease and claim is not None:
            self.leases.record_training_time(claim)

    def __enter__(self) -> Heartbeat:
        self._stop_event.clear()
        _ = self.worker  # register before the first claim
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        self._stop_event.set()
        assert self._thread is not None
        self._thread.join(timeout=5)
        if self._worker is not None and not isinstance(error, StorageUnavailable):
            with suppress(StorageUnavailable, StudyDeleted):  # it then expires instead
                self.leases.deregister_worker(self._worker)
        self._worker = None

    def _run(self) -> None:
        reaped_at = time.monotonic()
        while not self._stop_event.wait(self.leases.grace_s / 6):
            try:
                self.send()
                if time.monotonic() - reaped_at > self.leases.grace_s / 3:
                    reaped_at = time.monotonic()
                    self.leases.reap_expired()
            except StudyDeleted:
                self.lease_lost = True  # ends the training; the worker's next call raises this
            except Exception:  # noqa: S110
                pass  # the worker's own calls raise errors of the storage


@dataclass
class TrialContext:
    """Study, resources and stop conditions of a worker.

    stop_event: set when the running trial must be requeued. is_out_of_time: whether the study's
    time budget is spent. program: module that trains. on_event: called with the message of an
    event. imports: what the fork server imports for the study's models.
    """

    opened: OpenStudy
    slot: Slot
    listener: TrialListener
    leases: TrialLeases = None  # type: ignore[assignment]  # those of the study
    stop_event: threading.Event = field(default_factory=threading.Event)
    is_out_of_time: Callable[[], bool] = lambda: False
    program: str = CHILD_PROGRAM
    on_event: Callable[[str], None] = lambda message: None

    def __post_init__(self) -> None:
        self.study, self.spec = self.opened.study, self.opened.spec
        self.data, self.store = self.opened.trial_data, self.opened.artifact_store
        self.leases = self.leases or TrialLeases(self.study)
        self.heartbeat = Heartbeat(self.leases, self.slot)
        baselines = MODELS if self.spec.warm_start else ()
        self.imports = required_imports([*self.spec.space.families["model"], *baselines])

    def restore_cache(self) -> None:
        """Rebuild the cache of the images if it is damaged or missing.

        Raises:
            WorkerBlocked: it cannot be built: the images are missing, or the disk is full.
            KeyboardInterrupt: ``stop_event`` was set meanwhile.
        """
        cache = self.opened.cache
        if cache.is_unchanged():
            return

        def on_progress(done: int, total: int) -> None:
            if self.stop_event.is_set():
                raise KeyboardInterrupt
            if done == 1:
                self.on_event(f"cache: {cache.path} was damaged or deleted; it is built again")

        try:
            restore_cache(cache, self.opened.index, on_progress)
        except InputError as error:
            raise WorkerBlocked(str(error)) from None
