"""A program for trainings whose batches come from loader processes, as a GPU's do, on any CPU.

It tells of every step.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from lesionseg.training import trainer
from search.trial_process import child_main
from search.trial_process.protocol import JobOutcome, TrainJob

LOADERS = 2

describe_error = child_main.describe_error


def work(job: TrainJob, pipe: Connection) -> JobOutcome:
    """The training; what is changed is changed in this process only."""
    trainer.loader_workers = lambda device: LOADERS
    child_main.STEP_MESSAGE_S = 0.0
    return child_main.work(job, pipe)
