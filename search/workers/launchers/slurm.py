"""Workers as jobs of a SLURM cluster, through submitit.

The study is in its database, so that a job carries nothing: one that is pre-empted or out of time
puts its trial back into the queue and asks to be started again; one that is lost is replaced.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from lesionseg.data.sets import placed
from lesionseg.errors import InputError
from search.storage.database import STORAGE_VARIABLE, storage_from_environment
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, StopEvent
from search.workers.launchers.slurm_fleet import Fleet
from search.workers.launchers.slurm_job import Serve, WorkerJob

#: Seconds before the end of a job's time at which it is warned.
WARNING = 120
#: A shorter job would be warned before it has trained anything, and requeued for ever.
LEAST: dict[str, float] = {"time_minutes": 5, "gpus": 0, "cpus": 1, "memory_gb": 0.5}
#: How settings are read from text, and what that has to be.
READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(("time_minutes", "gpus", "cpus"), (int, "a whole number")),
    "memory_gb": (float, "a number"),
    "requeue": ({"true": True, "false": False}.__getitem__, "true or false"),
}


@dataclass(frozen=True)
class SlurmSettings:
    """What every job asks of the cluster; a job is one worker.

    cluster: "local" runs the jobs as processes of this host, to try things out. memory_gb: None
    leaves it to the site. requeue: Slurm itself queues a job again that is pre-empted or out of
    time; without it this engine submits another, as long as it runs. extra: further parameters
    of sbatch, such as {"constraint": "a100"}; True for a flag without a value.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    time_minutes: int = 240
    gpus: int = 1
    cpus: int = 4
    memory_gb: float | None = None
    account: str | None = None
    qos: str | None = None
    requeue: bool = True
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, least in LEAST.items():
            value = getattr(self, key)
            if value is not None and not value >= least:  # nan is neither
                raise InputError(f"slurm: {key}: must be at least {least}, got {value}")
        if self.cluster not in {"slurm", "local"}:
            raise InputError(f"slurm: cluster: must be slurm or local, got {self.cluster!r}")

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> SlurmSettings:
        """Settings as text; what is none of ours goes to sbatch as it is."""
        own = {f.name for f in fields(cls)} - {"extra"}
        known = {key: _value(key, text) for key, text in given.items() if key in own}
        extra = {key: True if text == "true" else text for key, text in given.items()}
        return cls(**known, extra={key: v for key, v in extra.items() if key not in own})


def _value(key: str, text: str) -> Any:
    read, what = READERS.get(key, (str, "text"))
    try:
        return read(text)
    except (KeyError, ValueError):
        raise InputError(f"slurm: {key}: must be {what}, got {text!r}") from None


def run_on_slurm(
    join: StudyLocation,
    *,
    slot: Slot,
    workers: int,
    stopping: StopEvent,
    is_done: Callable[[], bool],
    settings: SlurmSettings,
    serve: Serve | None = None,
    on_event: Callable[[str], None] = lambda text: None,
) -> None:
    """Keeps so many workers queued or running until the study is done or stopping is set.

    Logs and submitit's files are in ``slurm/`` of the study's folder, which every node must see
    under the same path. A storage's URL that is given neither by the environment nor as ``@file``
    is in a file of mode 0600 there as long as this runs.

    InputError where the cluster refuses the jobs, or where a worker says what the user can mend.
    Failed where every worker lost too many jobs in a row.
    """
    if workers < 1:
        raise InputError(f"slurm: workers must be at least 1, got {workers}")
    folder = join.folder.resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    executor = _executor(folder, join.name, settings)
    with _url_kept_out(join, folder) as (bare, in_environment):
        work = WorkerJob(bare, slot, settings.requeue, in_environment, serve)
        fleet = Fleet(executor, work, on_event, local=settings.cluster == "local")
        try:
            fleet.start(workers)
            while not stopping.is_set() and not is_done() and fleet.look():
                stopping.wait(fleet.every)
            fleet.let_end(stopping)
        finally:
            fleet.cancel()
    if not stopping.is_set() and not is_done():
        fleet.refuse_hopeless(folder)


@contextlib.contextmanager
def _url_kept_out(join: StudyLocation, folder: Path) -> Iterator[tuple[StudyLocation, bool]]:
    """The join without a password, which submitit would pickle; whether the environment has it.

    A URL that came from elsewhere is in a file of mode 0600 meanwhile, and the join names that.
    """
    data = None if join.data is None else placed(join.data)
    bare = replace(join, storage=None, folder=join.folder.resolve(), data=data)
    if join.storage in {None, storage_from_environment(), os.environ.get(STORAGE_VARIABLE)}:
        yield bare, storage_from_environment() is not None
    elif str(join.storage).startswith("@"):
        yield replace(bare, storage=f"@{Path(str(join.storage)[1:]).resolve()}"), False
    else:
        with tempfile.NamedTemporaryFile(  # of mode 0600, deleted at the end
            "w", prefix="storage-", suffix=".url", dir=folder, encoding="utf-8"
        ) as file:
            file.write(str(join.storage))
            file.flush()
            yield replace(bare, storage=f"@{file.name}"), False


def _executor(folder: Path, name: str, settings: SlurmSettings) -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError(
            "slurm: needs the package submitit; install lesionsearch with its extra 'slurm'"
        ) from None
    # A study outlasts any one job: running out of time is no reason to give a worker up.
    often = {f"{settings.cluster}_max_num_timeout": 1_000_000}
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.cluster, **often)
    except RuntimeError:
        raise InputError("slurm: there is no srun on this host; start where sbatch works") from None
    executor.update_parameters(**_parameters(name, settings))
    return executor


def _parameters(name: str, settings: SlurmSettings) -> dict[str, Any]:
    further = {"requeue" if settings.requeue else "no-requeue": True, "export": "ALL"}
    return {
        "name": f"lesionsearch-{name}",
        "timeout_min": settings.time_minutes,
        "cpus_per_task": settings.cpus,
        "mem_gb": settings.memory_gb,
        "gpus_per_node": settings.gpus or None,
        "slurm_signal_delay_s": WARNING,
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_qos": settings.qos,
        "slurm_additional_parameters": further | dict(settings.extra),
    }
