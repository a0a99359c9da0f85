"""Several workers at one study: who they are, on what engine, and how they are watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial

from lesionseg.errors import InputError, nearest
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.storage.trial_records import TimeBudget
from search.study.lifecycle import OpenStudy
from search.study.location import StudyLocation
from search.trial_process.resources import local_slots
from search.trial_process.slot import Slot, StopEvent
from search.workers.launchers.local import run_locally
from search.workers.worker import TrialListener

ENGINES = ("local", "ray", "slurm")
#: Seconds between two looks at the trials, and between two at the workers' heartbeats.
LOOK, REAP = 1.0, 5.0


@dataclass(frozen=True)
class WorkerPool:
    """Who works. engine: local, ray or slurm.

    slots: of this host, for the engine local; else one, as each worker is to have it. workers: how
    many there are of it at most; None for as many as the cluster holds. alone: the one worker is
    this process. settings: the engine's own, such as SLURM's partition.
    """

    engine: str = "local"
    slots: tuple[Slot, ...] = ()
    workers: int | None = None
    alone: bool = True
    settings: dict[str, str] = field(default_factory=dict)


def make_worker_pool(
    engine: str = "local",
    *,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int = 1,
    settings: Sequence[str] = (),
) -> WorkerPool:
    """The crew that command-line options ask for; InputError where they do not fit together.

    settings: KEY=VALUE of the engine's own.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine: unknown engine {engine!r} ({nearest(engine, ENGINES)})")
    parsed = dict(_setting(text) for text in settings)
    if engine == "local":
        if parsed:
            raise InputError("--engine-set: the engine local has no settings; is --engine lacking?")
        slots = local_slots(
            device, threads, workers=workers, gpus=gpus, workers_per_gpu=workers_per_gpu
        )
        alone = workers is None and gpus is None and workers_per_gpu == 1
        return WorkerPool(slots=tuple(slots), alone=alone)
    if gpus is not None:
        raise InputError(f"--gpus: the engine {engine} finds the GPUs; say --workers")
    slot = Slot(device, threads or 1, 1 / workers_per_gpu)
    return WorkerPool(engine, (slot,), workers, alone=False, settings=parsed)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--engine-set: must be KEY=VALUE such as partition=gpu, got {text!r}")
    return key.strip(), value.strip()


def run_worker_pool(
    opened: OpenStudy,
    crew: WorkerPool,
    join: StudyLocation,
    listener: TrialListener,
    stopping: StopEvent,
    on_event: Callable[[str], None],
) -> None:
    """Has the study worked on until it is done, stopped, or nobody can work on it."""
    watch = StudyMonitor(opened, listener, on_event)
    if crew.engine == "ray":
        from search.workers.launchers.ray import run_on_ray

        run_on_ray(
            join,
            slot=crew.slots[0],
            workers=crew.workers,
            stopping=_Ticking(stopping, watch.look),
            is_done=watch.is_done,
            address=crew.settings.get("address"),
            on_event=on_event,
            ended=watch.ended,
        )
    elif crew.engine == "slurm":
        from search.workers.launchers.slurm import SlurmSettings, run_on_slurm

        run_on_slurm(
            join,
            slot=crew.slots[0],
            workers=crew.workers or 1,
            stopping=_Ticking(stopping, watch.look),
            is_done=watch.is_done,
            settings=SlurmSettings.parse(crew.settings),
            on_event=on_event,
        )
    elif crew.slots:
        run_locally(
            join,
            crew.slots,
            stopping=stopping,
            progress=watch.ended,
            on_tick=watch.look,
            on_event=on_event,
        )
    else:  # the workers are started by others
        while not stopping.wait(LOOK) and not watch.is_done():
            watch.look()
    watch.look(force=True)


class StudyMonitor:
    """Sees from the records alone how a study goes on, tells it, and looks after the dead."""

    def __init__(
        self, opened: OpenStudy, listener: TrialListener, on_event: Callable[[str], None]
    ) -> None:
        self.opened, self.listener, self.on_event = opened, listener, on_event
        self.leases = TrialLeases(opened.study, on_wait=on_event)
        budget = opened.spec.budget
        self.clock = TimeBudget(budget.hours, budget.gpu_hours)
        self.told = {t.number for t in self._known() if t.state.is_finished()}
        self.looked = self.reaped = 0.0

    def look(self, *, force: bool = False) -> None:
        """Tells what ended since the last look; called as often as one likes."""
        now = time.monotonic()
        if now - self.looked < LOOK and not force:
            return
        self.looked = now
        if now - self.reaped > REAP:
            self.reaped = now
            for number, successor in self.leases.reap_expired():
                goes_on = "is closed" if successor is None else f"goes on as trial {successor}"
                self.on_event(f"trial {number} lost its worker; it {goes_on}")
        known = self._known()
        ranking = trial_records.rank_trials(known)
        for trial in known:
            if trial.state.is_finished() and trial.number not in self.told:
                self.told.add(trial.number)
                self.listener.trial_ended(trial, ranking[0] if ranking else None)

    def ended(self) -> int:
        """Trials with an end of their own."""
        return trial_records.count_finished(self._known())

    def is_done(self) -> bool:
        """Whether the study needs nobody any more."""
        known = self._known()
        spent = trial_records.count_finished(known) >= self.opened.spec.budget.trials
        over = self.clock.is_over(known) or self.leases.command == "stop"
        at_work = trial_records.count_by_state(known)["running"]
        # The space of a finite study may be exhausted before its budget.
        exhausted = (
            not at_work and len(trial_records.tried_digests(known)) >= self.opened.spec.space.size()
        )
        return spent or exhausted or (over and not at_work)

    def _known(self) -> list[FrozenTrial]:
        return trial_records.all_trials(self.opened.study)


class _Ticking:
    """A Stopping that has something done each time it is asked."""

    def __init__(self, stopping: StopEvent, tick: Callable[[], None]) -> None:
        self.stopping, self.tick = stopping, tick

    def is_set(self) -> bool:
        self.tick()
        return self.stopping.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        self.tick()
        return self.stopping.wait(timeout)
