"""What a job of SLURM runs: a worker that hears the cluster's signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from lesionseg.errors import InputError
from search.storage.database import STORAGE_FILE_VARIABLE, STORAGE_VARIABLE
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, StopEvent, WorkerResult

#: The environment's variables that say where the storage is.
VARIABLES = (STORAGE_VARIABLE, STORAGE_FILE_VARIABLE)


class Serve(Protocol):
    """``search.workers.loop.serve``: works on a study until it needs nobody or stopping is set."""

    def __call__(self, join: StudyLocation, slot: Slot, stopping: StopEvent) -> WorkerResult:
        """InputError for what the user can mend."""


class Asked:
    """A Stopping that a signal handler may set.

    A threading.Event could deadlock where the signal meets its own wait: both take one lock.
    """

    def __init__(self) -> None:
        self.heard: set[int] = set()
        self._read, self._write = os.pipe()

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """A signal's handler."""
        if not self.heard:
            os.write(self._write, b"!")
        self.heard.add(number)

    def is_set(self) -> bool:
        """Whether any signal came."""
        return bool(self.heard)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for one, at most so many seconds; whether it came."""
        return bool(select.select([self._read], [], [], timeout)[0])


@dataclass(frozen=True)
class WorkerJob:
    """What a job runs; submitit pickles it, so that no password may be in the join.

    requeue: ask Slurm to run the job again after pre-emption and time-out. in_environment: one
    of VARIABLES says where the storage is. serve: None for ``search.workers.loop.serve``.
    """

    join: StudyLocation
    slot: Slot
    requeue: bool = True
    in_environment: bool = False
    serve: Serve | None = None

    def __call__(self, index: int) -> WorkerResult | str:
        """Works; an InputError comes back as its text, which a traceback would bury.

        SystemExit, which leaves no result, where a signal ended it: Slurm may run it again.
        """
        heeded = (signal.SIGTERM, signal.SIGINT, preempt_signal())
        by_submitit = signal.getsignal(preempt_signal())
        asked = Asked()
        for each in heeded:
            signal.signal(each, asked.hear)
        try:
            served = self._work(asked)
        except InputError as error:
            return str(error)
        if served.why != "asked":
            return served
        # The trial is back in its queue; from here on only the job is to be seen to.
        for each in heeded:
            signal.signal(each, signal.SIG_IGN)
        if self.requeue and _was_warned(asked):
            # Not every site lets a job requeue itself; the engine replaces it then.
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                by_submitit(preempt_signal(), None)  # type: ignore[operator,misc]
        raise SystemExit(0)

    def checkpoint(self, index: int) -> Any:
        """submitit's protocol: what to run after the requeueing; the same, since nothing is held.

        Source: submitit's docs/checkpointing.md.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, index)

    def _work(self, asked: Asked) -> WorkerResult:
        if self.in_environment and not any(name in os.environ for name in VARIABLES):
            raise InputError(
                f"slurm: {STORAGE_VARIABLE} does not reach the jobs, since the site keeps the "
                f"environment back (SBATCH_EXPORT?); give --storage instead"
            )
        if self.serve is not None:
            return self.serve(self.join, self.slot, asked)
        from search.workers.loop import serve

        return serve(self.join, self.slot, asked)


def preempt_signal() -> signal.Signals:
    """The signal that submitit has Slurm warn a job with: SIGUSR2, unless the site sets another."""
    from submitit import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def squeue(*options: str) -> str | None:
    """The rows of squeue, or None where it cannot be asked."""
    try:
        command = ["squeue", "--noheader", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _was_warned(asked: Asked) -> bool:
    """Whether the job is only warned: before pre-emption and time-out, and not by scancel.

    SIGTERM comes with both, so that only the job's state in Slurm tells them apart: requeueing
    a job that is being cancelled would bring it back.
    """
    from submitit import JobEnvironment

    if signal.SIGINT in asked.heard:
        return False
    job = JobEnvironment()
    if job.cluster != "slurm":
        return asked.heard == {preempt_signal()}
    # Not SLURM_JOB_ID: that of one task is the array's own number, which stands for all of them.
    state = squeue("--jobs", job.job_id, "--format=%T")
    return state is not None and state.strip() == "RUNNING"
