"""Workers as SLURM jobs, submitted through submitit.

The study is in its database, so that jobs have no state: a job that is preempted or out of time
requeues its trial and then itself; a job that is lost is replaced.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from lesionseg.data.merge import list_roots
from lesionseg.errors import InputError
from search.storage.database import STORAGE_VARIABLE, storage_from_environment
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.launchers.launcher import LaunchContext
from search.workers.launchers.slurm_fleet import SlurmFleet
from search.workers.launchers.slurm_job import WorkerJob
from search.workers.worker_result import Work

#: Seconds before the end of its time at which a job is warned.
WARNING_S = 120


class SlurmSettings(BaseModel, frozen=True, extra="allow", allow_inf_nan=False):
    """Resources of each job; a job is one worker. Unknown keys are options of sbatch.

    cluster: "local" runs the jobs as processes of this host, for tests. memory_gb: None for the
    site's default. requeue: let SLURM queue a preempted or timed-out job again; otherwise another
    job is submitted.
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    #: A shorter job would be warned before it has trained anything.
    time_minutes: int = Field(240, ge=5)
    gpus: int = Field(1, ge=0)
    cpus: int = Field(4, ge=1)
    memory_gb: float | None = Field(None, ge=0.5)
    account: str | None = None
    qos: str | None = None
    requeue: bool = True

    @classmethod
    def parse(cls, settings: Mapping[str, str]) -> SlurmSettings:
        """Parse settings; the text ``true`` of an option of sbatch makes it a flag."""
        flags = {key: True for key, text in settings.items() if text == "true"}
        try:
            return cls.model_validate({**settings, **flags})
        except ValidationError as error:
            first = error.errors()[0]
            key, rule = first["loc"][0], first["msg"][:1].lower() + first["msg"][1:]
            raise InputError(f"slurm: {key}: {rule}, got {first['input']!r}") from None


def run_on_slurm(
    context: LaunchContext,
    slot: Slot,
    *,
    workers: int,
    settings: SlurmSettings,
    work: Work | None = None,
) -> None:
    """Keep workers queued or running until the study is done or ``stop_event`` is set.

    Logs and submitit's files are written to ``slurm/`` in the study's folder, which every node
    must see under the same path. A storage URL that is given neither by the environment nor as
    ``@file`` is kept there in a file of mode 0600 meanwhile. work: None for
    ``join_and_run_trials``.

    Raises:
        InputError: the cluster refuses the jobs, or a worker ended with an InputError.
        JobFailed: every worker was given up.
    """
    if workers < 1:
        raise InputError(f"slurm: workers must be at least 1, got {workers}")
    folder = context.location.folder.resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    executor = _make_executor(folder, context.location.name, settings)
    with _without_password(context.location, folder) as (location, uses_environment):
        job = WorkerJob(location, slot, settings.requeue, uses_environment, work)
        SlurmFleet(context, executor, job, workers, is_local=settings.cluster == "local").run()


@contextlib.contextmanager
def _without_password(
    location: StudyLocation, folder: Path
) -> Iterator[tuple[StudyLocation, bool]]:
    """Yield the location without a password, which submitit would pickle.

    The second value is whether jobs read the storage's URL from the environment. A URL from
    elsewhere is in a file of mode 0600 meanwhile, which the location names.
    """
    data = location.data and tuple(root.resolve() for root in list_roots(location.data))
    bare = replace(location, storage=None, folder=location.folder.resolve(), data=data)
    storage, from_environment = location.storage, storage_from_environment()
    if storage is None or storage in {from_environment, os.environ.get(STORAGE_VARIABLE)}:
        yield bare, from_environment is not None
    elif storage.startswith("@"):
        yield replace(bare, storage=f"@{Path(storage[1:]).resolve()}"), False
    else:
        with tempfile.NamedTemporaryFile(  # of mode 0600
            "w", prefix="storage-", suffix=".url", dir=folder, encoding="utf-8"
        ) as file:
            file.write(storage)
            file.flush()
            yield replace(bare, storage=f"@{file.name}"), False


def _make_executor(folder: Path, name: str, settings: SlurmSettings) -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError(
            "slurm: needs the package submitit; install lesionsearch with its extra 'slurm'"
        ) from None
    # A study takes longer than a job: timeouts are no reason to give a worker up.
    timeouts = {f"{settings.cluster}_max_num_timeout": 1_000_000}
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.cluster, **timeouts)
    except RuntimeError:
        raise InputError("slurm: there is no srun on this host; start where sbatch works") from None
    requeue = {"requeue" if settings.requeue else "no-requeue": True, "export": "ALL"}
    executor.update_parameters(
        name=f"lesionsearch-{name}",
        timeout_min=settings.time_minutes,
        cpus_per_task=settings.cpus,
        mem_gb=settings.memory_gb,
        gpus_per_node=settings.gpus or None,
        slurm_signal_delay_s=WARNING_S,
        slurm_partition=settings.partition,
        slurm_account=settings.account,
        slurm_qos=settings.qos,
        slurm_additional_parameters=requeue | (settings.model_extra or {}),
    )
    return executor
