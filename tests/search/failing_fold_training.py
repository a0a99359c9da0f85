"""A program for trainings that are disturbed in the third fold: they wait there to be put down."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection

from search.storage.retention import FOLDS
from search.trial_process import child_main
from search.trial_process.protocol import JobOutcome, TrainJob
from tests.search.failing_training import _Waiting

describe_error = child_main.describe_error


def work(job: TrainJob, pipe: Connection) -> JobOutcome:
    """The real training; in the third fold it waits in the middle of its third epoch."""
    assert job.state is not None
    kept = job.state.with_name(FOLDS)
    if kept.is_file() and len(json.loads(kept.read_text())["folds"]) == 2:
        child_main.Channel = _Waiting  # type: ignore[misc]  # in this process only
    return child_main.work(job, pipe)
