"""The training's own process, and the pipe to it.

A child knows neither the database nor Optuna. It sends what it has to say (Built, EpochRecord,
Trained, Chosen, Tested or Broke) and, after Built and each EpochRecord, waits to be told whether to
stop. So a CUDA error, a leak, a segfault or an out-of-memory kill costs one trial.

Children are forked from a server that has imported torch already: a start costs tens of
milliseconds. When the parent dies, whatever the way, its end of a second pipe closes, and the
child ends at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reason = Literal["oom", "diverged", "config", "crash"]


@dataclass(frozen=True)
class TrainJob:
    """One training. train, val: positions in the cache at ``cache``."""

    config: dict[str, Any]
    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    device: str
    threads: int
    save_to: Path | None = None
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class ChooseJob:
    """The choice of what is done to a network's output, on validation images alone.

    members: positions in the cache. The choice is noted in the checkpoint ``weights``.
    """

    weights: Path
    cache: Path
    members: NDArray[np.int64]
    device: str
    threads: int
    tta: bool = True
    postprocess: bool = True


@dataclass(frozen=True)
class TestJob:
    """One test. records: lesionseg.data.index.Record of each image.

    overlays: where pictures of the best, the median and the worst are drawn, if anywhere.
    show: names of records whose predicted masks are wanted.
    """

    weights: Path
    cache: Path
    records: tuple[Any, ...]
    device: str
    threads: int
    overlays: Path | None = None
    show: tuple[str, ...] = ()


Job = TrainJob | ChooseJob | TestJob


@dataclass(frozen=True)
class Built:
    """The network was built: its trainable parameters, and its multiply-adds for one image."""

    params: int
    macs: int


@dataclass(frozen=True)
class Trained:
    """The end of a TrainJob; result: lesionseg.train.TrainResult."""

    result: Any


@dataclass(frozen=True)
class Chosen:
    """The end of a ChooseJob; choice: lesionseg.inference.Choice."""

    choice: Any


@dataclass(frozen=True)
class Tested:
    """The end of a TestJob.

    evaluation: lesionseg.evaluate.Evaluation. speed: images a second of the network alone, in
    batches and one by one. overlays: (kind, file's name) of each. shown: the masks wanted.
    """

    evaluation: Any
    speed: dict[str, float]
    overlays: tuple[tuple[str, str], ...] = ()
    shown: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class Broke:
    """The job could not be done; message: one line; trace: for whoever looks closer."""

    reason: Reason
    message: str
    trace: str = ""


class Child:
    """A job at work. ``messages`` is to be read to its end; ``close`` ends it in any case."""

    def __init__(self, job: Job) -> None:
        # Threads that wait for each other shall sleep, not spin: spinning gains next to nothing on
        # an idle machine, and on one whose cores are shared it made epochs five times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["search.child_main"])
        self._pipe, theirs = context.Pipe()
        watched, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(target=_enter, args=(theirs, watched, job))
        with _without_main():
            self._process.start()
        theirs.close()
        watched.close()

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self._process.pid is not None
        return self._process.pid

    def messages(self) -> Iterator[Any]:
        """What the child says, the end of its job last: Trained, Chosen, Tested or Broke."""
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):  # OSError: it died in the middle of a message
                self._process.join()
                message = Broke("crash", _how_it_ended(self._process.exitcode))
            yield message
            if isinstance(message, Trained | Chosen | Tested | Broke):
                return

    def reply(self, stop: bool) -> None:
        """The answer to Built and to EpochRecord."""
        with contextlib.suppress(ConnectionError):  # it died; messages() will tell
            self._pipe.send(stop)

    def close(self) -> None:
        """Ends the process if it still runs, and waits for it."""
        self._lifeline.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the program's main module from a child that is being started.

    multiprocessing would import it again in every child, and with it whatever a user's script
    does at its top level; a child needs nothing of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _enter(pipe: Connection, lifeline: Connection, job: Job) -> None:
    # Either reaches the whole process group; what to do about it is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    from search import child_main

    try:
        end = child_main.work(job, pipe)
    except Exception as error:
        end = child_main.broke(error, traceback.format_exc(limit=-8))
    with contextlib.suppress(ConnectionError):
        pipe.send(end)


def _die_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the training's process was ended by {name}{hint}"
    return f"the training's process ended with exit code {code} and without a word"
