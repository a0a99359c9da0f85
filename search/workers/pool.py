"""Several workers for one study, on one of three engines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from optuna.trial import FrozenTrial, TrialState

from lesionseg.errors import InputError, suggest_name
from search.storage import trial_records
from search.storage.lease_types import Command
from search.storage.leases import TrialLeases
from search.storage.training_time import is_time_over
from search.storage.trial_records import StudyAttr
from search.study.deadline import has_time_for_trial
from search.study.location import StudyLocation
from search.study.opening import OpenStudy
from search.trial_process.resources import count_cores, default_slot, local_slots
from search.trial_process.slot import Slot
from search.workers.launchers.launcher import LaunchContext, RestartPolicy
from search.workers.launchers.local import LocalLauncher, worker_command
from search.workers.loop import WorkerOptions, join_and_run_trials
from search.workers.trial_context import TrialListener
from search.workers.worker_result import StopReason

ENGINES = ("local", "ray", "slurm")
#: Jobs of a cluster wait in a queue, and are replaced less often than processes.
SLURM_RESTARTS = RestartPolicy(max_failures=6, first_pause_s=2.0, steady_s=600.0)
#: CPUs of a worker on Ray: its training and three loaders; fewer if this host has fewer cores.
RAY_CPUS = 4
#: Seconds between two reads of the trials, and between two searches for dead workers.
POLL_S, REAP_S = 1.0, 5.0


@dataclass(frozen=True)
class WorkerPool:
    """Workers of a study. slots: of this host; for a cluster one, that of each worker.

    workers: the largest number on a cluster; None for as many as fit. alone: whether this process
    is the only worker. settings: of the engine, such as SLURM's partition. device: of the
    command-line options. keep_going: as in ``WorkerOptions``.
    """

    engine: str = "local"
    slots: tuple[Slot, ...] = ()
    workers: int | None = None
    alone: bool = True
    settings: dict[str, str] = field(default_factory=dict)
    device: str = "auto"
    keep_going: bool = False

    @property
    def final_slots(self) -> tuple[Slot, ...]:
        """The slots of the final test: those of the local workers, or the device of the options.

        Local workers' slots, so that only GPUs are used that the user named, and as many threads
        as in the search, on which the digits of a CPU's results depend.
        """
        if self.engine == "local" and self.slots:
            return self.slots
        return (default_slot(self.device),)


def make_worker_pool(
    engine: str = "local",
    *,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int = 1,
    settings: Sequence[str] = (),
    keep_going: bool = False,
) -> WorkerPool:
    """Return the pool for command-line options; InputError if they contradict.

    settings: KEY=VALUE of the engine. The others are those of ``local_slots``.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine: unknown engine {engine!r} ({suggest_name(engine, ENGINES)})")
    engine_settings = dict(_parse_setting(text) for text in settings)
    if engine == "local":
        if engine_settings:
            raise InputError("--engine-set: the engine local has no settings; add --engine?")
        slots = local_slots(
            device, threads, workers=workers, gpus=gpus, workers_per_gpu=workers_per_gpu
        )
        alone = workers is None and gpus is None and workers_per_gpu == 1
        return WorkerPool(slots=tuple(slots), alone=alone, device=device, keep_going=keep_going)
    if gpus is not None:
        raise InputError(f"--gpus: the engine {engine} assigns the GPUs; use --workers")
    if engine == "slurm" and workers_per_gpu > 1:
        raise InputError("--workers-per-gpu: a SLURM job does not share its GPUs; use --workers")
    threads = threads or _cpus_of_engine(engine, engine_settings)
    slot = Slot(device, threads, 1 / workers_per_gpu)
    return WorkerPool(
        engine, (slot,), workers, alone=False, settings=engine_settings, device=device,
        keep_going=keep_going,
    )  # fmt: skip


def _cpus_of_engine(engine: str, settings: dict[str, str]) -> int:
    """Return the CPUs that the engine reserves for each worker."""
    if engine == "slurm":
        from search.workers.launchers.slurm import SlurmSettings

        return SlurmSettings.parse(settings).cpus
    return min(RAY_CPUS, count_cores())


def _parse_setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--engine-set: must be KEY=VALUE such as partition=gpu, got {text!r}")
    return key.strip(), value.strip()


def run_worker_pool(
    opened: OpenStudy,
    pool: WorkerPool,
    location: StudyLocation,
    listener: TrialListener,
    stop_event: threading.Event,
    on_event: Callable[[str], None],
) -> StopReason:
    """Run the workers until the study is done or stopped; raise JobFailed if all gave up."""
    monitor = StudyMonitor(opened, listener, on_event)
    work = partial(join_and_run_trials, options=WorkerOptions(keep_going=pool.keep_going))

    def is_done() -> bool:
        monitor.poll()
        # Local workers find out themselves, and then exit.
        return not (pool.engine == "local" and pool.slots) and monitor.is_done()

    context = LaunchContext(
        location,
        stop_event,
        is_done=is_done,
        on_event=on_event,
        restart_policy=SLURM_RESTARTS if pool.engine == "slurm" else RestartPolicy(),
    )
    if pool.engine == "ray":
        from search.workers.launchers.ray import run_on_ray

        address = pool.settings.get("address")
        run_on_ray(context, pool.slots[0], max_workers=pool.workers, address=address, work=work)
    elif pool.engine == "slurm":
        from search.workers.launchers.slurm import SlurmSettings, run_on_slurm

        settings = SlurmSettings.parse(pool.settings)
        run_on_slurm(
            context, pool.slots[0], workers=pool.workers or 1, settings=settings, work=work
        )
    elif pool.slots:
        command = partial(worker_command, keep_going=pool.keep_going)
        LocalLauncher(context, pool.slots, command).run()
    else:  # all workers are started elsewhere
        while not context.must_stop():
            stop_event.wait(POLL_S)
    monitor.poll(force=True)
    # Workers also end when samplers find no new configuration in an unfinished space.
    return monitor.stop_reason() or StopReason.EXHAUSTED


class StudyMonitor:
    """Notifies a listener of ended trials and requeues the trials of dead workers."""

    def __init__(
        self, opened: OpenStudy, listener: TrialListener, on_event: Callable[[str], None]
    ) -> None:
        self.opened, self.listener, self.on_event = opened, listener, on_event
        self.leases = TrialLeases(opened.study, on_wait=on_event)
        self.ended = {trial.number for trial in self._trials() if trial.state.is_finished()}
        self._polled_at = self._reaped_at = 0.0

    def poll(self, *, force: bool = False) -> None:
        """Notify the listener of trials that ended, at most every POLL_S seconds."""
        now = time.monotonic()
        if now - self._polled_at < POLL_S and not force:
            return
        self._polled_at = now
        if now - self._reaped_at > REAP_S:
            self._reaped_at = now
            for number, successor in self.leases.reap_expired():
                action = "closed" if successor is None else f"requeued as trial {successor}"
                self.on_event(f"trial {number} lost its worker; {action}")
        trials = self._trials()
        ranking = trial_records.rank_trials(trials)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.ended:
                self.ended.add(trial.number)
                self.listener.trial_ended(trial, ranking[0] if ranking else None)

    def is_done(self) -> bool:
        """Return whether the study needs no worker."""
        reason = self.stop_reason()
        is_running = trial_records.count_by_state(self._trials())["running"] > 0
        return reason == StopReason.DONE or (reason is not None and not is_running)

    def stop_reason(self) -> StopReason | None:
        """Return why no further trial is started; None while there are some left to start."""
        trials = self._trials()
        # The stored budget, which may have changed.
        budget = self.opened.study.user_attrs[StudyAttr.SPEC]["budget"]["trials"]
        if trial_records.count_finished(trials) >= budget:
            return StopReason.DONE
        if is_time_over(trials, self.opened.spec.budget):
            return StopReason.TIME
        if not has_time_for_trial(self.opened, trials):
            return StopReason.TIME
        if self.leases.command == Command.STOP:
            return StopReason.STOPPED
        # A finite search space may be exhausted before the budget is spent. Trials that
        # the user queued are trained in any case.
        tried = len(trial_records.tried_digests(trials))
        is_queued = any(trial.state == TrialState.WAITING for trial in trials)
        is_exhausted = tried >= self.opened.spec.space.size() and not is_queued
        return StopReason.EXHAUSTED if is_exhausted else None

    def _trials(self) -> list[FrozenTrial]:
        return trial_records.all_trials(self.opened.study)
