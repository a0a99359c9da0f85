"""The training's own process, and the pipe to it.

A child knows neither the database nor Optuna. It sends what it has to say (``search.trial_process.protocol``) and,
after Built and each EpochRecord, waits to be told whether to stop. At any time it may be told to
suspend: it saves its state and ends. So a CUDA error, a leak, a segfault or an out-of-memory kill
costs one trial.

Children are forked from a server that has imported torch already: a start costs tens of
milliseconds. When the parent dies, whatever the way, its end of a second pipe closes, and the
child ends at once.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil

from search.trial_process.protocol import GO_ON, STOP, SUSPEND, Job, JobError, JobOutcome

#: Added to how readily Linux ends a training when the host is out of memory: it is to be the
#: training, not its worker or the database.
OOM_SCORE = "500"

#: How often a start is tried while the server that forks the children is being killed.
STARTS = 5

#: Two threads that start children at once would each hide the other's stand-in.
_STARTING = threading.Lock()


class TrialProcess:
    """A job at work. ``messages`` is to be read to its end; ``close`` ends it in any case."""

    def __init__(self, job: Job) -> None:
        # Threads that wait for each other shall sleep, not spin: spinning gains next to nothing on
        # an idle machine, and on one whose cores are shared it made epochs five times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([job.program, *job.imports])
        self._oom_kills = oom_kills()
        for left in reversed(range(STARTS)):
            try:
                self._start(context, job)
                return
            except (ConnectionError, EOFError):  # the server was killed just now
                if not left:
                    raise
                time.sleep(0.05)  # until that is seen, and another one started

    def _start(self, context: ForkServerContext, job: Job) -> None:
        self._pipe, theirs = context.Pipe()
        watched, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(target=_enter, args=(theirs, watched, job))
        try:
            with _without_main():
                self._process.start()
        except BaseException:
            # A server may have forked the child before it died: without a lifeline that ends too.
            for end in (self._pipe, self._lifeline):
                end.close()
            raise
        finally:
            theirs.close()
            watched.close()

    @property
    def pid(self) -> int:
        """Its process number, which is its group's too."""
        assert self._process.pid is not None
        return self._process.pid

    def messages(self) -> Iterator[Any]:
        """What the child says, the end of its job last."""
        while True:
            message = self.next()
            yield message
            if isinstance(message, JobOutcome):
                return

    def next(self, timeout: float | None = None) -> Any:
        """The next message, or None where none came within so many seconds.

        A child that died without a word gives Broke, with how it ended.
        """
        ready = wait([self._pipe, self._process.sentinel], timeout)
        if not ready:
            return None
        # What it said before it died comes first.
        if self._pipe in ready or self._pipe.poll():
            # OSError: it died in the middle of a message
            with contextlib.suppress(EOFError, OSError):
                return self._pipe.recv()
        self._process.join()
        return self._post_mortem()

    def reply(self, stop: bool) -> None:
        """The answer to Built and to EpochRecord."""
        self._say(STOP if stop else GO_ON)

    def suspend(self) -> None:
        """Asks it to save its state and to end with Suspended; it may have ended otherwise."""
        self._say(SUSPEND)

    def memory(self) -> int:
        """Bytes of the host's memory that are its own and its loaders', but for pages of files."""
        total = 0
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(self.pid)
            for process in (top, *top.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += _held(process)
        return total

    def kill(self) -> None:
        """Ends it and whatever it started, at once."""
        # Its group is its own from its first line on; before that there is only itself.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Ends the process if it still runs, and waits for it."""
        self._lifeline.close()
        self._process.join(timeout=1)
        if self._process.is_alive():
            self.kill()
        self._pipe.close()

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _say(self, word: str) -> None:
        with contextlib.suppress(ConnectionError):  # it died; messages() will tell
            self._pipe.send(word)

    def _post_mortem(self) -> JobError:
        code = self._process.exitcode
        if code == -signal.SIGKILL and oom_kills() > self._oom_kills:
            return JobError("oom", "the kernel ended the training's process: out of memory")
        return JobError("crash", _how_it_ended(code))


def _held(process: psutil.Process) -> int:
    """Bytes of memory that no file backs; of a page that several processes share, its part.

    Loaders share what the training had when it forked them: counted for each, eight that hold
    nothing would be eight trainings.
    """
    parts = [0]
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in {"Pss_Anon", "Pss_Shmem"}:
                parts.append(1024 * int(value.split()[0]))
    if any(parts):
        return sum(parts)
    used = process.memory_info()  # an older kernel, or no Linux
    return int(used.rss - getattr(used, "shared", 0))


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory; 0 where it does not tell."""
    counted = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    counted += int(value)
    return counted


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the program's main module from a child that is being started.

    multiprocessing would import it again in every child, and with it whatever a user's script
    does at its top level; a child needs nothing of it.
    """
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _enter(pipe: Connection, lifeline: Connection, job: Job) -> None:
    os.setpgid(0, 0)  # so that what it starts can be ended with it
    # Either reaches the whole process group; what to do about it is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    program = importlib.import_module(job.program)
    try:
        end = program.work(job, pipe)
    except Exception as error:
        end = program.broke(error, traceback.format_exc(limit=-8))
    with contextlib.suppress(ConnectionError):
        pipe.send(end)


def _die_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os.killpg(0, signal.SIGKILL)  # its loaders too


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the training's process was ended by {name}{hint}"
    return f"the training's process ended with exit code {code} and without a word"
