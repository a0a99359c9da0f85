"""A training program that fails in the way that the width of the network selects.

At any other width it trains nothing and succeeds at once. When the failure begins is written to
a file beside the state, by the monotonic clock.
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

from lesionseg.metrics.overlap import METRICS, Metrics
from lesionseg.training.types import EpochRecord, TrainingEnd, TrainResult
from search.trial_process import child_main
from search.trial_process.protocol import (
    ErrorReason,
    JobError,
    JobOutcome,
    ModelBuilt,
    StepDone,
    Trained,
    TrainJob,
)

#: Widths that no published system has.
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
    "loses the device": 114,
}
#: Epoch and step in which "waits for suspend" waits.
SUSPEND_POINT = (3, 2)
#: Bytes at which the failure of "allocates" begins; it allocates four times as many.
LARGE = 300_000_000

describe_error = child_main.describe_error


def run_job(job: TrainJob, pipe: Connection) -> JobOutcome:
    width = job.config["model"]["unet"]["width"]
    failure = next((name for name, each in FAILURE_WIDTHS.items() if each == width), "")
    match failure:
        case "waits for suspend":
            child_main.Channel = SuspendingChannel  # in this process only
            return child_main.run_job(job, pipe)
        case "fits in halves" | "fits in quarters" | "never fits":
            parts = {"fits in halves": 2, "fits in quarters": 4}.get(failure, 1000)
            if job.accumulation_factor < parts:
                return JobError(
                    ErrorReason.OOM, f"no room for a batch in {job.accumulation_factor} parts"
                )
        case "loses the device":
            return JobError(ErrorReason.DEVICE, "CUDA error: no CUDA-capable device is detected")
        case "":
            pass
        case _:
            _fail(failure, job, pipe)
    return _succeed(job, pipe)


def _succeed(job: TrainJob, pipe: Connection) -> JobOutcome:
    _note(job, "base", _own_memory())
    pipe.send(ModelBuilt(10, 20))
    pipe.recv()
    records = []
    # In [0, 1): depends on the configuration, and increases with each epoch.
    best = zlib.crc32(repr(job.config).encode()) / 2**32
    for epoch in range(1, job.config["epochs"] + 1):
        scores = Metrics(**dict.fromkeys(METRICS, best * epoch / job.config["epochs"]))
        records.append(EpochRecord(epoch, 0.5, 0.5, scores, 0.01, 0.0))
        pipe.send(records[-1])
        pipe.recv()
    if job.weights_path is not None:
        job.weights_path.write_bytes(b"weights")
    return Trained(
        TrainResult(records[-1], tuple(records), TrainingEnd.FINISHED, 0.0, 1, job.weights_path)
    )


def _fail(failure: str, job: TrainJob, pipe: Connection) -> None:
    _note(job, "pid", os.getpid())
    if failure != "is stopped":  # this one hangs before its first message
        pipe.send(ModelBuilt(10, 20))
        pipe.recv()
    if failure == "allocates":
        _allocate(job)
    _note(job, "failed_at", time.monotonic())
    match failure:
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
        case _:  # "ignores suspend" too
            time.sleep(600)


def _allocate(job: TrainJob) -> None:
    arrays = []
    for i in range(4 * LARGE // 20_000_000):
        arrays.append(np.ones(20_000_000, np.uint8))
        if (i + 1) * 20_000_000 == LARGE:
            _note(job, "failed_at", time.monotonic())
    time.sleep(600)


class SuspendingChannel(child_main.Channel):
    """Reads replies only at SUSPEND_POINT, where it waits for one."""

    position = (0, 0)

    def send_step(self, epoch: int, step: int, steps: int) -> None:
        self.position = (epoch, step)

    def is_suspended(self) -> bool:
        if self.position != SUSPEND_POINT:
            return self.suspended
        self.pipe.poll(600)
        return super().is_suspended()


def _own_memory() -> float:
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def _note(job: TrainJob, name: str, value: float) -> None:
    path = job.weights_path or job.state_path  # later folds of a cross-validation save no weights
    assert path is not None
    path.with_name(name).write_text(repr(value))
