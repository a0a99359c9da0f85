"""A training program whose batches come from loader processes, as on a GPU; reports every step."""

from __future__ import annotations

from multiprocessing.connection import Connection

from lesionseg.training import batches
from search.trial_process import child_main
from search.trial_process.protocol import JobOutcome, TrainJob

LOADERS = 2

describe_error = child_main.describe_error


def run_job(job: TrainJob, pipe: Connection) -> JobOutcome:
    batches.loader_workers = lambda device, n_bytes: LOADERS  # in this process only
    child_main.STEP_MESSAGE_S = 0.0
    return child_main.run_job(job, pipe)
