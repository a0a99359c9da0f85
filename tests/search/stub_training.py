"""A training program that trains nothing and sends all messages of a real training.

It imports no torch, so that its fork server starts at once. It reads the cache in each epoch as a
training does. Its values depend on the configuration and the epoch alone, and so does whether it
fails. It writes ``truth.log`` in the study's folder: a record of all trainings that is independent
of the database.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.config import TrialConfig
from lesionseg.data.cache import Cache
from search.trial_process.protocol import (
    ErrorReason,
    Job,
    JobError,
    JobOutcome,
    ModelBuilt,
    Reply,
    Resumed,
    StateSaved,
    Suspended,
    Trained,
    TrainJob,
)

LOG = "truth.log"
#: The environment variable that holds the shortest and the longest epoch in seconds.
SECONDS = "LESIONSEARCH_STUB_SECONDS"
#: The environment variable that holds the path of the log, if it is not in the study's folder.
LOG_PATH = "LESIONSEARCH_STUB_LOG"
#: The environment variable that holds ``data_digest`` of the study's images.
EXPECTED_DATA = "LESIONSEARCH_STUB_DATA"
#: The environment variable that holds the share of the configurations that fail.
FAILING_SHARE = "LESIONSEARCH_STUB_FAILING"
#: Kinds of log lines. BEGUN: the process runs. DATA: it read other images than expected.
BEGUN, STARTED, EPOCH, SAVED, DATA = "begun", "started", "epoch", "saved", "data"


@dataclass(frozen=True)
class Line:
    """One event of a training. epoch: for STARTED, the number of epochs in the restored state."""

    trial: int
    kind: str
    digest: str
    epoch: int
    pid: int


def value(digest: str, epoch: int) -> float:
    """Return the Dice of an epoch, in [0, 1)."""
    return int(hashlib.sha256(f"{digest} {epoch}".encode()).hexdigest()[:12], 16) / 16**12


def own_failure(digest: str, share: float) -> str | None:
    """Return how the training of a configuration fails after two epochs; None if it does not.

    share: of the configurations that fail; half of them diverge.
    """
    position = value(digest, -1000)
    if position >= share:
        return None
    return f"{digest} {'diverged' if position < share / 2 else 'has a defect'}"


def data_digest(cache: Cache) -> str:
    """Return a hash of all pixels."""
    pixels = hashlib.sha256(np.asarray(cache.images).tobytes())
    pixels.update(np.asarray(cache.masks).tobytes())
    return pixels.hexdigest()[:16]


def read_log(folder: Path, path: Path | None = None) -> list[Line]:
    """Return the lines of a study's trainings in the order of time."""
    path = path or folder / LOG
    rows = path.read_text().splitlines() if path.exists() else []
    return [
        Line(int(trial), kind, digest, int(epoch), int(pid))
        for trial, kind, digest, epoch, pid in map(str.split, rows)
    ]


def record(epoch: int, dice: float, seconds: float) -> Any:
    """Return an EpochRecord; called when a ``_Deferred`` is unpickled."""
    from lesionseg.metrics.overlap import METRICS, Metrics
    from lesionseg.training.types import EpochRecord

    return EpochRecord(epoch, 1 - dice, 1 - dice, Metrics(*[dice] * len(METRICS)), 0.1, seconds)


def result(history: tuple[Any, ...], stopped_early: bool, checkpoint: Path) -> Any:
    """Return a TrainResult of these records."""
    from lesionseg.training.types import TrainingEnd, TrainResult

    best = max(history, key=lambda each: each.metrics.dice)
    stopped = TrainingEnd.CALLBACK if stopped_early else TrainingEnd.FINISHED
    return TrainResult(best, history, stopped, sum(r.seconds for r in history), 1, checkpoint)


class _Deferred:
    """Unpickled as the result of a function: its class would import torch here."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


def run_job(job: Job, pipe: Connection) -> JobOutcome:
    assert isinstance(job, TrainJob)
    return _Training(job, pipe).run()


def describe_error(error: Exception, trace: str) -> JobError:
    reason = ErrorReason.CRASH
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        reason = ErrorReason.DISK
    elif isinstance(error, FileNotFoundError):
        reason = ErrorReason.DATA
    elif "diverged" in str(error):
        reason = ErrorReason.DIVERGED
    return JobError(reason, f"{type(error).__name__}: {error}", trace)


class _Suspend(Exception):
    pass


class _Training:
    def __init__(self, job: TrainJob, pipe: Connection) -> None:
        assert job.state_path is not None
        assert job.weights_path is not None
        self.pipe, self.state, self.weights = pipe, job.state_path, job.weights_path
        config = TrialConfig.from_dict(job.config)
        self.digest, self.epochs = config.digest(), config.epochs
        self.own_failure = own_failure(self.digest, float(os.environ.get(FAILING_SHARE, "0")))
        self.epoch, self.trial = 0, job.state_path.parent.name
        self.is_started = False
        self.log_path = Path(os.environ.get(LOG_PATH) or job.state_path.parents[2] / LOG)
        self._log(BEGUN)
        self.cache = Cache(job.cache)

    def run(self) -> Trained | Suspended:
        try:
            stopped = self._send(ModelBuilt(1_000_000, 1_000_000)) or self._train()
        except _Suspend:
            if self.is_started:  # otherwise an existing state has not been restored
                self._save()
            return Suspended(self.epoch)
        _write(self.weights, f"weights of {self.digest}")
        return Trained(_Deferred(result, self._records(), stopped, self.weights))

    def _train(self) -> bool:
        """Return whether it was stopped."""
        if self.state.exists():
            state = json.loads(self.state.read_text())
            assert state["digest"] == self.digest
            self.epoch = state["epochs"]
            self.pipe.send(Resumed(self._records()))
        self.is_started = True
        self._log(STARTED)
        for epoch in range(self.epoch + 1, self.epochs + 1):
            if epoch > 2 and self.own_failure:
                raise RuntimeError(self.own_failure)
            read = data_digest(self.cache)
            self._wait(_seconds(self.digest, epoch))
            self.cache.check_size()
            if read != os.environ.get(EXPECTED_DATA, read):
                self._log(DATA)
            self.epoch = epoch
            self._log(EPOCH)
            if self._send(_record(self.digest, epoch)):
                return True
            if epoch < self.epochs:
                self._save()
                self.pipe.send(StateSaved(epoch))
        return False

    def _send(self, message: Any) -> bool:
        self.pipe.send(message)
        return self._receive() == Reply.STOP

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.pipe.poll(left):
                self._receive()

    def _receive(self) -> Reply:
        reply: Reply = self.pipe.recv()
        if reply == Reply.SUSPEND:
            raise _Suspend
        return reply

    def _save(self) -> None:
        _write(self.state, json.dumps({"digest": self.digest, "epochs": self.epoch}))
        self._log(SAVED)

    def _log(self, kind: str) -> None:
        # A single append: lines of several processes do not mix.
        line = f"{self.trial} {kind} {self.digest} {self.epoch} {os.getpid()}\n"
        file = os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())
        os.close(file)

    def _records(self) -> tuple[Any, ...]:
        return tuple(_record(self.digest, epoch) for epoch in range(1, self.epoch + 1))


def _record(digest: str, epoch: int) -> _Deferred:
    return _Deferred(record, epoch, value(digest, epoch), _seconds(digest, epoch))


def _seconds(digest: str, epoch: int) -> float:
    shortest, longest = map(float, os.environ.get(SECONDS, "0.005 0.05").split())
    return shortest + (longest - shortest) * value(digest, -epoch)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
