"""A worker's shift: trial after trial, until the study needs it no more or it is sent away."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from lesionseg.config import TrialConfig
from lesionseg.runtime.device import pick_device
from lesionseg.training.train import EpochRecord
from search.errors import JobFailed
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStoreUnavailable
from search.storage.lease_types import Claim
from search.storage.leases import TrialLeases
from search.storage.retention import sweep
from search.storage.retrying_storage import StorageUnavailable, retry_transient
from search.storage.trial_records import TimeBudget
from search.study.lifecycle import OpenStudy, join_study, prepare_sampling
from search.study.location import StudyLocation
from search.study.samplers import SAMPLERS
from search.study.weights import ensure_space_weights
from search.trial_process.protocol import PROGRAM
from search.trial_process.slot import Slot, StopEvent, WorkerResult
from search.workers.worker import TrialListener, Worker

#: After so many skipped trials in a row the sampler gives way to draws that are new ...
GIVE_WAY = 10
#: ... and after so many the space counts as exhausted, if it is too large to be counted.
EXHAUSTED = 100
#: Seconds for which a worker waits at its door for a database that is away.
AT_THE_DOOR = 60.0
#: Seconds between two questions of a worker that waits for others.
SHORTEST, LONGEST = 0.2, 5.0


class NullListener:
    """A listener whom nothing interests."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Nothing."""

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Nothing."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker's shift is bound to.

    max_trials: it leaves after so many. forever: it waits for more where the study is done.
    """

    max_trials: int | None = None
    forever: bool = False
    program: str = PROGRAM


def serve(
    join: StudyLocation,
    slot: Slot,
    stopping: StopEvent,
    terms: WorkerOptions = WorkerOptions(),
    listener: TrialListener | None = None,
    on_event: Callable[[str], None] = lambda told: None,
) -> WorkerResult:
    """Joins a study and works on it.

    stopping: set when the worker is to put its trial down and leave. Raises InputError where the
    study, its data or the slot are not what they should be, and Failed. A database that is away
    is waited for, for a minute: it may be started together with its workers, or again.
    """
    slot = replace(slot, device=str(pick_device(slot.device)))
    try:
        opened = retry_transient(
            lambda: join_study(join),
            stopping=stopping,
            patience=AT_THE_DOOR,
            on_wait=on_event,
        )
    except StorageUnavailable:
        if stopping.is_set():
            return WorkerResult(0, "asked")
        opened = join_study(join)  # in its own words, if they still hold
    ensure_space_weights(opened.spec.space)
    return work(opened, slot, listener or NullListener(), stopping, terms, on_event)


def work(
    opened: OpenStudy,
    slot: Slot,
    listener: TrialListener,
    stopping: StopEvent | None = None,
    terms: WorkerOptions = WorkerOptions(),
    on_event: Callable[[str], None] = lambda told: None,
) -> WorkerResult:
    """Works on an opened study; why it ended: done, time, exhausted, asked or enough."""
    stopping = stopping or threading.Event()
    shift = _Shift(opened, slot, listener, stopping, terms, on_event)
    try:
        return shift.work()
    except (StorageUnavailable, ArtifactStoreUnavailable) as error:
        if stopping.is_set():
            return WorkerResult(shift.ended, "asked")
        raise JobFailed(str(error)) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        raise JobFailed(opened.describe_error(error)) from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise JobFailed(
                f"{opened.folder}: {error.strerror}; make room and start again"
            ) from None
        raise


class _Shift:
    def __init__(
        self,
        opened: OpenStudy,
        slot: Slot,
        listener: TrialListener,
        stopping: StopEvent,
        terms: WorkerOptions,
        on_event: Callable[[str], None],
    ) -> None:
        self.opened, self.stopping, self.terms = opened, stopping, terms
        budget = opened.spec.budget
        self.clock = TimeBudget(budget.hours, budget.gpu_hours)
        opened.configure_retries(stopping, on_event)
        self.leases = TrialLeases(opened.study, on_wait=on_event)
        self.worker = Worker(
            opened.study,
            opened.spec,
            opened.trial_data,
            opened.artifact_store,
            slot,
            listener,
            leases=self.leases,
            stopping=stopping,
            deadline=lambda: self.clock.is_over(trial_records.all_trials(opened.study)),
            program=terms.program,
        )
        self.ended = self.skipped = self.idle = 0

    def work(self) -> WorkerResult:
        with self.worker:
            self.worker.heartbeat.beat()  # it hears at once what the others were told long ago
            prepare_sampling(self.opened, self.worker.heartbeat.row.ordinal)
            self.own = self.opened.study.sampler
            self.leases.reap_expired()
            while True:
                why = self._one()
                if why is not None:
                    sweep(self.opened.artifact_store, trial_records.all_trials(self.opened.study))
                    return WorkerResult(self.ended, why)

    def _one(self) -> str | None:
        """One trial, or one wait for others; why the shift is over, if it is."""
        if self.stopping.is_set() or self.worker.heartbeat.command == "stop":
            return "asked"
        if self.terms.max_trials is not None and self.ended >= self.terms.max_trials:
            return "enough"
        if self.worker.heartbeat.command == "pause":
            self._wait()
            return None
        known = trial_records.all_trials(self.opened.study)
        if self.clock.is_over(known):
            if not self.terms.forever:
                return "time"
            self._wait()
            return None
        exhausted = (
            len(trial_records.tried_digests(known)) >= self.opened.spec.space.size()
            or self.skipped >= EXHAUSTED
        )
        self.opened.study.sampler = _fresh(self.opened) if self.skipped >= GIVE_WAY else self.own
        claimed = self.worker.claim(fresh=not exhausted)
        if isinstance(claimed, Claim):
            self._run(claimed)
            return None
        if claimed == "full" or self.terms.forever:
            self.leases.reap_expired()
            self._wait()
            return None
        return "exhausted" if exhausted and not self._is_spent() else "done"

    def _run(self, claim: Claim) -> None:
        self.idle = 0
        done = self.worker.run(claim)
        if trial_records.was_interrupted(done):
            return
        self.ended += 1
        self.skipped = self.skipped + 1 if trial_records.state_of(done) == "skipped" else 0

    def _wait(self) -> None:
        """Longer and longer, but never so long that an end is missed for long."""
        self.idle += 1
        self.stopping.wait(min(LONGEST, SHORTEST * 1.5 ** min(self.idle, 20)))

    def _is_spent(self) -> bool:
        known = trial_records.all_trials(self.opened.study)
        budget: int = self.opened.study.user_attrs["spec"]["budget"]["trials"]
        return trial_records.count_finished(known) >= budget


def _fresh(opened: OpenStudy) -> BaseSampler:
    name = "grid" if opened.spec.space.is_finite() else "random"
    return SAMPLERS[name](opened.spec.seed + len(trial_records.all_trials(opened.study)), 0)
