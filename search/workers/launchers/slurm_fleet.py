"""The SLURM jobs of all workers of one study."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lesionseg.errors import InputError
from search.trial_process.slot import StopEvent
from search.workers.launchers.launch_context import LaunchContext
from search.workers.launchers.restart_policy import RestartPolicy
from search.workers.launchers.slurm_job import WorkerJob, squeue

#: Seconds that running workers have to end by themselves when the study is done.
END_TIMEOUT_S = 60.0
#: Seconds that cancelled jobs have to requeue their trials; SLURM's own KillWait is 30.
CANCEL_TIMEOUT_S = 45.0


@dataclass
class SlurmWorker:
    """A worker and its job, if it has one."""

    policy: RestartPolicy
    job: Any = None
    is_running: bool = False
    is_done: bool = False

    @property
    def is_ended(self) -> bool:
        """Whether no further job is submitted."""
        return self.job is None and (self.is_done or self.policy.is_exhausted)


class SlurmFleet:
    """Submits, replaces and cancels jobs of a submitit executor, one per worker.

    is_local: the jobs are processes of this host instead of SLURM jobs.
    """

    def __init__(
        self, executor: Any, work: WorkerJob, context: LaunchContext, *, is_local: bool
    ) -> None:
        self.executor, self.work, self.context, self.is_local = executor, work, context, is_local
        #: Seconds between two polls; slurmctld must not be queried often.
        self.poll_s = 0.5 if is_local else 10.0
        self.workers: list[SlurmWorker] = []
        self.jobs: list[Any] = []  # all submitted: one with a result may still be running

    @property
    def is_given_up(self) -> bool:
        """Whether every worker failed too often."""
        return all(worker.policy.is_exhausted for worker in self.workers)

    def start(self, workers: int) -> None:
        """Submit all workers as one job array; InputError if the cluster refuses it."""
        try:
            jobs = self._submit(workers)
        except RuntimeError as error:
            text = " ".join(str(error).replace("sbatch: error:", "").split())
            raise InputError(f"slurm: sbatch refused the jobs: {text}") from None
        self.workers = [SlurmWorker(self.context.new_restart_policy(), job) for job in jobs]
        self.context.on_event(f"slurm: submitted {', '.join(str(job.job_id) for job in jobs)}")

    def poll(self) -> bool:
        """Handle ended jobs and replace lost ones; return whether a worker is left.

        Raises:
            InputError: a worker ended with one.
        """
        # States first: a job that has ended by then wrote its result before that is read.
        states = self._states()
        for worker in self.workers:
            if worker.job is not None:
                self._check_job(worker, states)
            elif not worker.is_ended and worker.policy.is_due():
                self._replace(worker)
        return not all(worker.is_ended for worker in self.workers)

    def wait_for_end(self, stop_event: StopEvent) -> None:
        """Wait until running jobs ended by themselves, or for END_TIMEOUT_S."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while not stop_event.is_set() and time.monotonic() < deadline:
            states = self._states()
            if states is not None and "RUNNING" not in states.values():
                return
            stop_event.wait(min(self.poll_s, 2.0))

    def cancel(self) -> None:
        """Cancel queued and running jobs and wait until they have ended."""
        deadline, is_first = time.monotonic() + CANCEL_TIMEOUT_S, True
        while jobs := self._unfinished_jobs():
            if time.monotonic() >= deadline:
                numbers = ", ".join(str(job.job_id) for job in jobs)
                self.context.on_event(f"slurm: jobs still running: {numbers}")
                for job in jobs if self.is_local else ():
                    job.cancel()
                return
            for job in jobs:
                self._cancel_job(job, is_first=is_first)
            is_first = False
            time.sleep(min(self.poll_s, 2.0))

    def _submit(self, count: int) -> list[Any]:
        from submitit.helpers import clean_env

        # Jobs submitted from within a job would inherit its resources.
        is_nested = "SLURM_JOB_ID" in os.environ and not self.is_local
        with clean_env() if is_nested else contextlib.nullcontext():
            jobs = list(self.executor.map_array(self.work, range(count)))
        self.jobs += jobs
        return jobs

    def _check_job(self, worker: SlurmWorker, states: Mapping[str, str] | None) -> None:
        job = worker.job
        if job.paths.result_pickle.exists():
            self._read_result(worker)
        elif states is not None and job.job_id not in states:
            self._handle_loss(worker, f"job {job.job_id} is gone without a result")
        elif states is not None and states[job.job_id] == "RUNNING" and not worker.is_running:
            worker.is_running = True
            worker.policy.record_start()

    def _read_result(self, worker: SlurmWorker) -> None:
        job = worker.job
        if job.exception() is not None:
            self._handle_loss(worker, f"job {job.job_id} failed; see {job.paths.stderr}")
            return
        result = job.result()
        if isinstance(result, str):
            raise InputError(result)
        self.context.on_event(
            f"slurm: job {job.job_id} ended: {result.reason}, {result.trials} trials"
        )
        worker.job, worker.is_done = None, True

    def _handle_loss(self, worker: SlurmWorker, cause: str) -> None:
        worker.job, worker.is_running = None, False
        action = worker.policy.record_failure(self.context.count_finished())
        self.context.on_event(f"slurm: {cause}; {action}")

    def _replace(self, worker: SlurmWorker) -> None:
        try:
            (worker.job,) = self._submit(1)
        except RuntimeError as error:  # slurmctld may be unavailable for a while
            text = " ".join(str(error).split())
            self._handle_loss(worker, f"a job could not be submitted: {text}")
            return
        self.context.on_event(f"slurm: submitted {worker.job.job_id} in place of a lost job")

    def _states(self) -> dict[str, str] | None:
        """Return the states of queued and running jobs by id; None if squeue failed."""
        if self.is_local:
            return {job.job_id: "RUNNING" for job in self.jobs if not job.done()}
        # Not sacct, which submitit uses: clusters without accounting do not have it.
        rows = squeue("--array", f"--user={os.getuid()}", "--format=%i|%T")
        if rows is None:
            return None
        states = dict(row.split("|", 1) for row in rows.split())
        return {job.job_id: states[job.job_id] for job in self.jobs if job.job_id in states}

    def _unfinished_jobs(self) -> list[Any]:
        states = self._states()
        return [job for job in self.jobs if states is None or job.job_id in states]

    def _cancel_job(self, job: Any, *, is_first: bool) -> None:
        if self.is_local:
            # submitit's own cancel kills the process after a second, too early to requeue its
            # trial. The signal is repeated, since a process that is starting ignores it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        elif is_first:
            job.cancel(check=False)
