"""A training program whose third fold waits to be suspended, or diverges if a file says so."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection

from search.storage.retention import FOLDS
from search.trial_process import child_main
from search.trial_process.protocol import ErrorReason, JobError, JobOutcome, TrainJob
from tests.search.failing_training import SuspendingChannel

#: The file, in the folder of all trials.
DIVERGES = "diverges"

describe_error = child_main.describe_error


def run_job(job: TrainJob, pipe: Connection) -> JobOutcome:
    assert job.state_path is not None
    folds = job.state_path.with_name(FOLDS)
    if folds.is_file() and len(json.loads(folds.read_text())["folds"]) == 2:
        if (job.state_path.parents[1] / DIVERGES).exists():
            return JobError(ErrorReason.DIVERGED, "the loss is not finite")
        child_main.Channel = SuspendingChannel  # type: ignore[misc]  # in this process only
    return child_main.run_job(job, pipe)
