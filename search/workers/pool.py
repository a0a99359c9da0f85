"""Several workers for one study, on one of three engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lesionseg.errors import InputError, suggest_name
from search.study.location import StudyLocation
from search.study.opening import OpenStudy
from search.trial_process.resources import local_slots
from search.trial_process.slot import Slot, StopEvent
from search.workers.launchers.launch_context import LaunchContext
from search.workers.launchers.local import run_locally
from search.workers.launchers.restart_policy import RestartPolicy
from search.workers.listener import TrialListener
from search.workers.study_monitor import POLL_S, StudyMonitor

ENGINES = ("local", "ray", "slurm")
#: Jobs of a cluster wait in a queue, and are replaced less often than processes.
SLURM_RESTARTS = RestartPolicy(max_failures=6, first_pause_s=2.0, steady_s=600.0)


@dataclass(frozen=True)
class WorkerPool:
    """Workers of a study. slots: of this host; for a cluster one, that of each worker.

    workers: the largest number on a cluster; None for as many as fit. alone: whether this process
    is the only worker. settings: of the engine, such as SLURM's partition.
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
        return WorkerPool(slots=tuple(slots), alone=alone)
    if gpus is not None:
        raise InputError(f"--gpus: the engine {engine} assigns the GPUs; use --workers")
    slot = Slot(device, threads or 1, 1 / workers_per_gpu)
    return WorkerPool(engine, (slot,), workers, alone=False, settings=engine_settings)


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
    stop_event: StopEvent,
    on_event: Callable[[str], None],
) -> None:
    """Run the workers until the study is done or stopped; raise JobFailed if all gave up."""
    monitor = StudyMonitor(opened, listener, on_event)
    context = LaunchContext(
        location,
        stop_event,
        is_done=monitor.is_done,
        count_finished=monitor.count_finished,
        on_poll=monitor.poll,
        on_event=on_event,
        restart_policy=SLURM_RESTARTS if pool.engine == "slurm" else RestartPolicy(),
    )
    if pool.engine == "ray":
        from search.workers.launchers.ray import run_on_ray

        address = pool.settings.get("address")
        run_on_ray(context, pool.slots[0], max_workers=pool.workers, address=address)
    elif pool.engine == "slurm":
        from search.workers.launchers.slurm import SlurmSettings, run_on_slurm

        settings = SlurmSettings.parse(pool.settings)
        run_on_slurm(context, pool.slots[0], workers=pool.workers or 1, settings=settings)
    elif pool.slots:
        run_locally(context, pool.slots)
    else:  # all workers are started elsewhere
        while not context.must_stop():
            stop_event.wait(POLL_S)
    monitor.poll(force=True)
