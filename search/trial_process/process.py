"""The training process and the pipe to it.

The process uses neither the database nor Optuna. It sends messages (see ``protocol``) and waits
for a reply after ModelBuilt and each EpochRecord. It may be suspended at any time: it then
saves its state and ends. A CUDA error, a leak, a segmentation fault or the out-of-memory killer
therefore costs one trial.

Processes are forked from a server that has imported torch, so that a start takes tens of
milliseconds. When the parent dies, its end of a second pipe closes, and the process exits at once.
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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil

from lesionseg.runtime.openmp import limit_spinning
from search import signals
from search.output import tolerant_output
from search.trial_process.protocol import ErrorReason, Job, JobError, JobOutcome, Reply

#: Written to oom_score_adj, so that Linux kills trainings before workers and databases.
OOM_SCORE = "500"
#: Attempts to start a process while the fork server is being killed.
START_ATTEMPTS = 5
#: Held while ``__main__`` is replaced: two threads must not restore each other's replacement.
_START_LOCK = threading.Lock()


class TrialProcess:
    """A running job. Read ``messages`` to the end; ``close`` ends the process in any case."""

    def __init__(self, job: Job) -> None:
        limit_spinning()
        if job.slot.device == "cpu":
            # glibc keeps freed memory for reuse. Returning each activation to the system, which
            # zeroes it again, took 13% of a U-Net's step at 96 px and a third at 256 px.
            os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
            os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([job.program, *job.imports])
        self._oom_kills = count_oom_kills()
        for attempts_left in reversed(range(START_ATTEMPTS)):
            try:
                self._start(context, job)
                return
            except (ConnectionError, EOFError):  # the fork server was killed
                if not attempts_left:
                    raise
                time.sleep(0.05)  # until a new server is started

    def _start(self, context: ForkServerContext, job: Job) -> None:
        self._pipe, child_pipe = context.Pipe()
        child_lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(child_pipe, child_lifeline, job))
        try:
            # The fork server must survive a signal to the process group, from a service manager or
            # a closed terminal: a training is lost with its server. It ends with this process.
            with signals.blocked_in_children():
                resource_tracker.ensure_running()  # it unblocks SIGTERM
            with _without_main_module(), signals.blocked_in_children():
                self._process.start()
        except BaseException:
            # The server may have forked the child before it died; the child ends without lifeline.
            self._pipe.close()
            self._lifeline.close()
            raise
        finally:
            child_pipe.close()
            child_lifeline.close()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        assert self._process.pid is not None
        return self._process.pid

    def messages(self) -> Iterator[Any]:
        """Yield every message; the last one is a JobOutcome."""
        while True:
            message = self.receive()
            yield message
            if isinstance(message, JobOutcome):
                return

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message, or None after ``timeout`` seconds.

        The message of a process that died is a JobError that describes how it ended.
        """
        ready = wait([self._pipe, self._process.sentinel], timeout)
        if not ready:
            return None
        # Messages that were sent before the process died come first.
        if self._pipe in ready or self._pipe.poll():
            # OSError: the process died in the middle of a message
            with contextlib.suppress(EOFError, OSError):
                return self._pipe.recv()
        self._process.join()
        return self._describe_death()

    def reply(self, *, stop: bool) -> None:
        self._send(Reply.STOP if stop else Reply.CONTINUE)

    def suspend(self) -> None:
        """Tell the process to save its state and to end with Suspended."""
        self._send(Reply.SUSPEND)

    def kill(self) -> None:
        """Kill the process and its children."""
        # The process creates its own group in its first line.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End the process if it still runs, and wait for it."""
        self._lifeline.close()
        self._process.join(timeout=1)
        if self._process.is_alive():
            self.kill()
        self._pipe.close()

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, reply: Reply) -> None:
        with contextlib.suppress(ConnectionError):  # it died, which ``receive`` returns
            self._pipe.send(reply)

    def _describe_death(self) -> JobError:
        code = self._process.exitcode
        if code == -signal.SIGKILL and count_oom_kills() > self._oom_kills:
            text = "the kernel killed the training process: out of memory"
            return JobError(ErrorReason.OOM, text)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return JobError(ErrorReason.CRASH, f"the training process was ended by {name}{hint}")
        text = f"the training process ended with exit code {code} and without a result"
        return JobError(ErrorReason.CRASH, text)


def measure_memory(pid: int) -> int:
    """Return the host memory of a process and its descendants in bytes, without file pages."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += _memory_of(process)
    return total


def _memory_of(process: psutil.Process) -> int:
    """Return the bytes that no file backs; a page shared by several processes counts in parts.

    Loaders share the memory that the training had at their fork: counted in full for each, eight
    idle loaders would count as eight trainings.
    """
    sizes = _read_numbers(f"/proc/{process.pid}/smaps_rollup")
    size = 1024 * (sizes.get("Pss_Anon:", 0) + sizes.get("Pss_Shmem:", 0))
    if size:
        return size
    memory = process.memory_info()  # an older kernel, or not Linux
    return int(memory.rss - getattr(memory, "shared", 0))


def count_oom_kills() -> int:
    """Return how many processes the kernel killed out of memory; 0 if it is not known."""
    paths = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")
    return sum(_read_numbers(path).get("oom_kill", 0) for path in paths)


def _read_numbers(path: str) -> dict[str, int]:
    """Return the numbers of a file of the kernel by name; nothing where there is no such file."""
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path(path).read_text().splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    return {}


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide ``__main__`` from a process that is being started.

    multiprocessing would import it in every child, and run a user's script again.
    """
    with _START_LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _main(pipe: Connection, lifeline: Connection, job: Job) -> None:
    """Run a job; this is the main function of the training process."""
    os.setpgid(0, 0)  # so that it can be killed together with its children
    # These signals reach the whole process group; the parent decides what happens.
    for number in (signal.SIGINT, *signals.TERMINATING):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.TERMINATING)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    threading.Thread(target=_exit_with_parent, args=(lifeline,), daemon=True).start()
    program = importlib.import_module(job.program)
    try:
        with tolerant_output():
            outcome = program.run_job(job, pipe)
    except Exception as error:
        outcome = program.describe_error(error, traceback.format_exc(limit=-8))
    with contextlib.suppress(ConnectionError):
        pipe.send(outcome)


def _exit_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os.killpg(0, signal.SIGKILL)  # loaders too
