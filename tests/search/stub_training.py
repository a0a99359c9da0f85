"""A training that trains nothing and says all that a real one says.

It needs no torch, so that its server is there at once. Its values follow from the configuration
and the epoch alone. Besides what it says it writes a log of its own, ``truth.log`` in the study's
folder: what really happened, whatever the database holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lesionseg.config import TrialConfig
from search.trial_process.protocol import (
    SUSPEND,
    Job,
    JobError,
    JobOutcome,
    ModelBuilt,
    Resumed,
    StateSaved,
    Suspended,
    Trained,
    TrainJob,
)

LOG = "truth.log"
#: The environment variable that holds the shortest and the longest epoch in seconds.
SECONDS = "LESIONSEARCH_STUB_SECONDS"
#: The lines of the log, as their second word.
UNFINISHED_FILES, EPOCH, SAVED = "begun", "epoch", "saved"


@dataclass(frozen=True)
class Line:
    """What a training did. epoch: of begun, how many epochs lay in the state that was found."""

    trial: int
    what: str
    digest: str
    epoch: int
    pid: int


def value(digest: str, epoch: int) -> float:
    """The Dice of an epoch, in [0, 1)."""
    return int(hashlib.sha256(f"{digest} {epoch}".encode()).hexdigest()[:12], 16) / 16**12


def read_log(folder: Path) -> list[Line]:
    """Every line that the trainings of a study's folder wrote, in the order of time."""
    path = folder / LOG
    rows = path.read_text().splitlines() if path.exists() else []
    return [
        Line(int(trial), what, digest, int(epoch), int(pid))
        for trial, what, digest, epoch, pid in map(str.split, rows)
    ]


def record(epoch: int, dice: float, seconds: float) -> Any:
    """An EpochRecord; for whoever unpickles a ``_Made``."""
    from lesionseg.metrics import METRICS, Metrics
    from lesionseg.training.types import EpochRecord

    return EpochRecord(epoch, 1 - dice, 1 - dice, Metrics(*[dice] * len(METRICS)), 0.1, seconds)


def result(history: tuple[Any, ...], asked: bool, checkpoint: Path) -> Any:
    """A TrainResult of these records."""
    from lesionseg.training.types import TrainResult

    best = max(history, key=lambda each: each.metrics.dice)
    stopped = "asked" if asked else "finished"
    return TrainResult(best, history, stopped, sum(r.seconds for r in history), 1, checkpoint)


class _Made:
    """Becomes what ``make`` makes when it is unpickled: its class would need torch here."""

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        self.make, self.args = make, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.make, self.args


def work(job: Job, pipe: Connection) -> JobOutcome:
    """Does a TrainJob; ``pipe`` takes the messages and gives the answers."""
    assert isinstance(job, TrainJob)
    return _Training(job, pipe).work()


def describe_error(error: Exception, trace: str) -> JobError:
    """Whatever went wrong, as a crash."""
    return JobError("crash", f"{type(error).__name__}: {error}", trace)


class _Suspend(Exception):
    pass


class _Training:
    def __init__(self, job: TrainJob, pipe: Connection) -> None:
        assert job.state is not None
        assert job.save_to is not None
        self.pipe, self.state, self.weights = pipe, job.state, job.save_to
        config = TrialConfig.from_dict(job.config)
        self.digest, self.epochs = config.digest(), config.epochs
        self.done = 0
        self.trial, self.log = job.state.parent.name, job.state.parents[2] / LOG

    def work(self) -> Trained | Suspended:
        try:
            asked = self._ask(ModelBuilt(1_000_000, 1_000_000)) or self._train()
        except _Suspend:
            self._save()
            return Suspended(self.done)
        _write(self.weights, f"weights of {self.digest}")
        return Trained(_Made(result, self._records(), asked, self.weights))

    def _train(self) -> bool:
        """Whether it was told to stop."""
        if self.state.exists():
            state = json.loads(self.state.read_text())
            assert state["digest"] == self.digest
            self.done = state["epochs"]
            self.pipe.send(Resumed(self._records()))
        self._note(UNFINISHED_FILES)
        for epoch in range(self.done + 1, self.epochs + 1):
            self._wait(_seconds(self.digest, epoch))
            self.done = epoch
            self._note(EPOCH)
            if self._ask(_record(self.digest, epoch)):
                return True
            if epoch < self.epochs:
                self._save()
                self.pipe.send(StateSaved(epoch))
        return False

    def _ask(self, message: Any) -> bool:
        self.pipe.send(message)
        return self._hear() == "stop"

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.pipe.poll(left):
                self._hear()

    def _hear(self) -> str:
        answer: str = self.pipe.recv()
        if answer == SUSPEND:
            raise _Suspend
        return answer

    def _save(self) -> None:
        _write(self.state, json.dumps({"digest": self.digest, "epochs": self.done}))
        self._note(SAVED)

    def _note(self, what: str) -> None:
        # One write at the end of the file: lines of several processes do not mix.
        line = f"{self.trial} {what} {self.digest} {self.done} {os.getpid()}\n"
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())
        os.close(file)

    def _records(self) -> tuple[Any, ...]:
        return tuple(_each(self.digest, self.done))


def _each(digest: str, epochs: int) -> Iterator[_Made]:
    for epoch in range(1, epochs + 1):
        yield _record(digest, epoch)


def _record(digest: str, epoch: int) -> _Made:
    return _Made(record, epoch, value(digest, epoch), _seconds(digest, epoch))


def _seconds(digest: str, epoch: int) -> float:
    shortest, longest = map(float, os.environ.get(SECONDS, "0.005 0.05").split())
    return shortest + (longest - shortest) * value(digest, -epoch)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
