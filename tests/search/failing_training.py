"""A program for trainings that go wrong, each in the way that its network's width says.

At any other width a training that needs no time is told. When the trouble begins is
written beside the state, by the clock that all processes of a host share.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
import zlib
from multiprocessing.connection import Connection

import numpy as np
import psutil

from lesionseg.metrics import METRICS, Metrics
from lesionseg.training.types import EpochRecord, TrainResult
from search.trial_process import child_main
from search.trial_process.protocol import (
    JobError,
    JobOutcome,
    ModelBuilt,
    StepDone,
    Trained,
    TrainJob,
)

#: Of these widths: none that a published system has.
FAILURE_WIDTHS = {
    "allocates": 101,
    "segfaults": 102,
    "aborts": 103,
    "exits": 104,
    "is killed": 105,
    "is stopped": 106,
    "sleeps": 107,
    "never finishes": 108,
    "fits in halves": 109,
    "fits in quarters": 110,
    "never fits": 111,
    "ignores suspend": 112,
    "waits for suspend": 113,
}
#: Epoch and step after which "waits for suspend" waits for a word.
SUSPEND_POINT = (3, 2)
#: Bytes, at which "allocates" says that its trouble begins; it goes on to four times as many.
LARGE = 300_000_000

describe_error = child_main.describe_error


def work(job: TrainJob, pipe: Connection) -> JobOutcome:
    """Goes wrong, or does not."""
    width = job.config["model"]["unet"]["width"]
    way = next((name for name, each in FAILURE_WIDTHS.items() if each == width), "")
    match way:
        case "waits for suspend":
            child_main.Channel = _Waiting  # in this process only
            return child_main.work(job, pipe)
        case "fits in halves" | "fits in quarters" | "never fits":
            wanted = {"fits in halves": 2, "fits in quarters": 4}.get(way, 1000)
            if job.parts < wanted:
                return JobError("oom", f"no room for a batch in {job.parts} parts")
        case "":
            pass
        case _:
            _go_wrong(way, job, pipe)
    return _quick(job, pipe)


def _quick(job: TrainJob, pipe: Connection) -> JobOutcome:
    _note(job, "base", _own_memory())
    pipe.send(ModelBuilt(10, 20))
    pipe.recv()
    records = []
    # In [0, 1): as good as the configuration has it, and better with each epoch.
    good = zlib.crc32(repr(job.config).encode()) / 2**32
    for epoch in range(1, job.config["epochs"] + 1):
        scores = Metrics(**dict.fromkeys(METRICS, good * epoch / job.config["epochs"]))
        records.append(EpochRecord(epoch, 0.5, 0.5, scores, 0.01, 0.0))
        pipe.send(records[-1])
        pipe.recv()
    if job.save_to is not None:  # as it is of a cross-validation's later folds
        job.save_to.write_bytes(b"weights")
    return Trained(TrainResult(records[-1], tuple(records), "finished", 0.0, 1, job.save_to))


def _go_wrong(way: str, job: TrainJob, pipe: Connection) -> None:
    _note(job, "pid", os.getpid())
    if way != "is stopped":  # one that hangs before its first word
        pipe.send(ModelBuilt(10, 20))
        pipe.recv()
    if way == "allocates":
        _allocate(job)
    _note(job, "trouble", time.monotonic())
    match way:
        case "segfaults":
            ctypes.string_at(0)
        case "aborts":
            os.abort()
        case "exits":
            os._exit(3)
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "never finishes":
            while True:
                pipe.send(StepDone(1, 1, 1))
                time.sleep(0.05)
        case _:  # also what is deaf to being suspended
            time.sleep(600)


def _allocate(job: TrainJob) -> None:
    kept = []
    for i in range(4 * LARGE // 20_000_000):
        kept.append(np.ones(20_000_000, np.uint8))
        if (i + 1) * 20_000_000 == LARGE:
            _note(job, "trouble", time.monotonic())
    time.sleep(600)


class _Waiting(child_main.Channel):
    """Hears nothing but between two steps of the third epoch, where it waits for a word."""

    at = (0, 0)

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.at = (epoch, step)

    def is_to_suspend(self) -> bool:
        if self.at != SUSPEND_POINT:
            return self.suspending
        self.pipe.poll(600)
        return super().is_to_suspend()


def _own_memory() -> float:
    used = psutil.Process().memory_info()
    return used.rss - used.shared


def _note(job: TrainJob, name: str, value: float) -> None:
    beside = job.save_to or job.state  # a cross-validation's later folds keep no weights
    assert beside is not None
    beside.with_name(name).write_text(repr(value))
