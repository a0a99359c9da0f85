"""What a SLURM job runs: a worker that handles the signals of the cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

from lesionseg.errors import InputError
from search.errors import WorkerBlocked
from search.signals import SignalHandler
from search.storage.database import STORAGE_FILE_VARIABLE, STORAGE_VARIABLE
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.worker_result import Work, WorkerResult


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

    def __call__(self, index: int) -> WorkerResult | WorkerBlocked | str:
        """Run the worker; return the text of an InputError, which a traceback would hide.

        WorkerBlocked is returned for the same reason.

        Raises SystemExit, which leaves no result, after a signal: SLURM may run the job again.
        """
        warning = preempt_signal()
        submitit_handler = signal.getsignal(warning)
        signals = SignalHandler(warning)
        with signals.installed():
            try:
                with signals.deferred():
                    return self._run(signals.stop_event)
            except InputError as error:
                return str(error)
            except WorkerBlocked as error:
                return WorkerBlocked(str(error))
            except KeyboardInterrupt:  # the trial is requeued; only the job remains to be handled
                if self.requeue and _is_warned(signals.signal_number):
                    # Some sites do not let a job requeue itself; the launcher then submits another.
                    with contextlib.suppress(subprocess.SubprocessError, OSError):
                        submitit_handler(warning, None)  # type: ignore[operator,misc]
                raise SystemExit(0) from None

    def _run(self, stop_event: threading.Event) -> WorkerResult:
        variables = (STORAGE_VARIABLE, STORAGE_FILE_VARIABLE)
        if self.uses_environment and not any(name in os.environ for name in variables):
            raise InputError(
                f"slurm: {STORAGE_VARIABLE} does not reach the jobs; does the site restrict the "
                f"environment (SBATCH_EXPORT)? Give --storage instead"
            )
        if self.work is not None:
            return self.work(self.location, self.slot, stop_event)
        from search.workers.loop import join_and_run_trials  # imports torch

        return join_and_run_trials(self.location, self.slot, stop_event)

    def checkpoint(self, index: int) -> Any:
        """Return what submitit runs after requeueing: the same, since a worker has no state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, index)


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


def _is_warned(number: int | None) -> bool:
    """Return whether SLURM warned of preemption or timeout, and did not cancel the job.

    SIGTERM is sent in both cases; only the job's state distinguishes them. A cancelled job must
    not be requeued.
    """
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.cluster != "slurm":
        return number == preempt_signal()
    # SLURM_JOB_ID of a task is the number of the whole array.
    state = squeue("--jobs", job.job_id, "--format=%T")
    return number != signal.SIGINT and state is not None and state.strip() == "RUNNING"
