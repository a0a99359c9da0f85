"""Made-up statuses for tests of their display."""

from dataclasses import replace

from lesionseg.config import TrialConfig
from search.monitoring.status import BestTrial, RunningTrial, StudyStatus, WorkerStatus
from search.storage.lease_types import Command

CONFIG = TrialConfig().to_dict()


def make_running_trial(**changes) -> RunningTrial:
    """Return trial 3 after three of twelve epochs."""
    return replace(RunningTrial(3, 12, [0.25, 0.5, 0.75], CONFIG, None, None), **changes)


def make_worker_status(**changes) -> WorkerStatus:
    """Return a worker that trains trial 3 on half a GPU."""
    worker = WorkerStatus("w", "here[1]", 42, "cuda:0", 0.5, 1, "training", 3, 2, 7.4, False)
    return replace(worker, **changes)


def make_status(**changes) -> StudyStatus:
    """Return a study with 3 of 12 finished trials, a running one and a worker."""
    status = StudyStatus(
        study="skin[bold]",
        command=Command.RUN,
        counts={"complete": 2, "failed": 1, "running": 1, "waiting": 0},
        reasons={"oom": 1},
        finished=3,
        hours=0.5,
        gpu_hours=0.0,
        hours_left=1.5,
        budget={"trials": 12, "hours": None, "gpu_hours": None},
        best=BestTrial(1, 0.75, CONFIG, None),
        queued=[],
        running=[make_running_trial()],
        workers=[make_worker_status()],
        disk_bytes=12_340_000,
        test_evaluations=1,
        test={"dice": 0.7, "ci95": [0.6, 0.8]},
        encoder_weights={},
    )
    return replace(status, **changes)
