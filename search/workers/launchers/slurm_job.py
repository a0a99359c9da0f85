"""What a SLURM job runs: a worker that handles the signals of the cluster."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from dataclasses import dataclass
from types import FrameType
from typing import Any

from lesionseg.errors import InputError
from search.storage.database import STORAGE_FILE_VARIABLE, STORAGE_VARIABLE
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.worker_result import StopReason, Work, WorkerResult


class SignalEvent:
    """A StopEvent that a signal handler sets.

    A ``threading.Event`` may deadlock if the signal interrupts its own ``wait``: both take the
    same lock.
    """

    def __init__(self) -> None:
        self.signals: set[int] = set()
        self._read_end, self._write_end = os.pipe()

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Set the event; this is the signal handler."""
        if not self.signals:
            os.write(self._write_end, b"!")
        self.signals.add(number)

    def is_set(self) -> bool:
        return bool(self.signals)

    def wait(self, timeout: float | None = None) -> bool:
        return bool(select.select([self._read_end], [], [], timeout)[0])


@dataclass(frozen=True)
class WorkerJob:
    """What a job runs. submitit pickles it, so the location must not contain a password.

    requeue: let SLURM run the job again after preemption and timeout. uses_environment: a
    variable of the environment contains the storage's URL. work: None for
    ``search.workers.loop.join_and_run_trials``.
    """

    location: StudyLocation
    slot: Slot
    requeue: bool = True
    uses_environment: bool = False
    work: Work | None = None

    def __call__(self, index: int) -> WorkerResult | str:
        """Run the worker; return the text of an InputError, which a traceback would hide.

        Raises SystemExit, which leaves no result, after a signal: SLURM may run the job again.
        """
        warning = preempt_signal()
        submitit_handler = signal.getsignal(warning)
        stop_event = SignalEvent()
        handled = (signal.SIGTERM, signal.SIGINT, warning)
        for number in handled:
            signal.signal(number, stop_event.handle)
        variables = (STORAGE_VARIABLE, STORAGE_FILE_VARIABLE)
        if self.uses_environment and not any(name in os.environ for name in variables):
            return (
                f"slurm: {STORAGE_VARIABLE} does not reach the jobs; does the site restrict the "
                f"environment (SBATCH_EXPORT)? Give --storage instead"
            )
        try:
            work = self.work or _import_work()
            result = work(self.location, self.slot, stop_event)
        except InputError as error:
            return str(error)
        if result.reason != StopReason.STOPPED:
            return result
        # The trial is requeued; only the job remains to be handled.
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        if self.requeue and _is_warned(stop_event):
            # Some sites do not let a job requeue itself; the launcher then submits another one.
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                submitit_handler(warning, None)  # type: ignore[operator,misc]
        raise SystemExit(0)

    def checkpoint(self, index: int) -> Any:
        """Return what submitit runs after requeueing: the same, since a worker has no state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, index)


def _import_work() -> Work:
    from search.workers.loop import join_and_run_trials  # imports torch

    return join_and_run_trials


def preempt_signal() -> signal.Signals:
    """Return the signal with which SLURM warns a job: SIGUSR2 unless the site sets another."""
    from submitit import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def squeue(*options: str) -> str | None:
    """Return the rows of squeue, or None if it failed."""
    try:
        command = ["squeue", "--noheader", *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def _is_warned(stop_event: SignalEvent) -> bool:
    """Return whether SLURM warned of preemption or timeout, and did not cancel the job.

    SIGTERM is sent in both cases; only the job's state distinguishes them. A cancelled job must
    not be requeued.
    """
    from submitit import JobEnvironment

    if signal.SIGINT in stop_event.signals:
        return False
    job = JobEnvironment()
    if job.cluster != "slurm":
        return stop_event.signals == {preempt_signal()}
    # SLURM_JOB_ID of a task is the number of the whole array.
    state = squeue("--jobs", job.job_id, "--format=%T")
    return state is not None and state.strip() == "RUNNING"
