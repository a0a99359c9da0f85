"""The SLURM jobs of all workers of one study."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from lesionseg.errors import InputError
from search.errors import WorkerBlocked
from search.workers.launchers.launcher import LaunchContext, Launcher, ManagedWorker
from search.workers.launchers.slurm_job import WorkerJob, squeue

#: Seconds that running workers have to end by themselves when the study is done.
END_TIMEOUT_S = 60.0
#: Seconds that cancelled jobs have to requeue their trials; SLURM's own KillWait is 30.
CANCEL_TIMEOUT_S = 45.0


class SlurmFleet(Launcher):
    """Submits, replaces and cancels jobs of a submitit executor, one per worker.

    count: number of workers. is_local: the jobs are processes of this host, not SLURM jobs.
    """

    def __init__(
        self, context: LaunchContext, executor: Any, work: WorkerJob, count: int, *, is_local: bool
    ) -> None:
        super().__init__(context)
        self.executor, self.work, self.count, self.is_local = executor, work, count, is_local
        #: Seconds between two polls; slurmctld must not be queried often.
        self.poll_s = 0.2 if is_local else 10.0
        self.jobs: list[Any] = []  # all submitted: one with a result may still be running
        self._states: dict[str, str] | None = None
        self.last_failure = f"see {executor.folder}"

    def supervise(self) -> None:
        """Submit all workers as one job array; InputError if the cluster refuses it."""
        try:
            jobs = self._submit(self.count)
        except RuntimeError as error:
            text = " ".join(str(error).replace("sbatch: error:", "").split())
            raise InputError(f"slurm: sbatch refused the jobs: {text}") from None
        self.workers = [ManagedWorker(job.job_id, self.context, job) for job in jobs]
        self.context.on_event(f"slurm: submitted {', '.join(str(job.job_id) for job in jobs)}")
        super().supervise()
        self._wait_for_end()

    def poll(self) -> bool:
        # States first: a job that has ended by then wrote its result before that is read.
        self._states = self._read_states()
        return super().poll()

    def check(self, worker: ManagedWorker) -> None:
        job, states = worker.handle, self._states
        if job.paths.result_pickle.exists():
            self._read_result(worker)
        elif states is not None and job.job_id not in states:
            worker.record_failure(f"slurm: job {job.job_id} is gone without a result")
        elif states and states[job.job_id] == "RUNNING":
            worker.record_start()

    def start(self, worker: ManagedWorker) -> None:
        """Submit a job in place of a lost one."""
        try:
            (worker.handle,) = self._submit(1)
        except RuntimeError as error:  # slurmctld may be unavailable for a while
            text = " ".join(str(error).split())
            worker.record_failure(f"slurm: a job could not be submitted: {text}")
            return
        job_id = worker.handle.job_id
        self.context.on_event(f"slurm: submitted {job_id} in place of a lost job")

    def stop(self) -> None:
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

    def _wait_for_end(self) -> None:
        """Wait until running jobs ended by themselves, or for END_TIMEOUT_S."""
        deadline, stop_event = time.monotonic() + END_TIMEOUT_S, self.context.stop_event
        while not stop_event.is_set() and time.monotonic() < deadline:
            states = self._read_states()
            if states is not None and "RUNNING" not in states.values():
                return
            stop_event.wait(min(self.poll_s, 2.0))

    def _submit(self, count: int) -> list[Any]:
        from submitit.helpers import clean_env

        # Jobs submitted from within a job would inherit its resources.
        is_nested = "SLURM_JOB_ID" in os.environ and not self.is_local
        with clean_env() if is_nested else contextlib.nullcontext():
            jobs = list(self.executor.map_array(self.work, range(count)))
        self.jobs += jobs
        return jobs

    def _read_result(self, worker: ManagedWorker) -> None:
        job = worker.handle
        if job.exception() is not None:
            worker.record_failure(f"slurm: job {job.job_id} failed; see {job.paths.stderr}")
            return
        result = job.result()
        if isinstance(result, str):
            raise InputError(result)
        if isinstance(result, WorkerBlocked):
            self.last_failure = str(result)
            worker.give_up(f"slurm: job {job.job_id} stopped: {result}")
            return
        self.context.on_event(
            f"slurm: job {job.job_id} ended: {result.reason}, {result.trials} trials"
        )
        worker.handle, worker.is_done = None, True

    def _read_states(self) -> dict[str, str] | None:
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
        states = self._read_states()
        return [job for job in self.jobs if states is None or job.job_id in states]

    def _cancel_job(self, job: Any, *, is_first: bool) -> None:
        if self.is_local:
            # submitit's own cancel kills the process after a second, too early to requeue its
            # trial. The signal is repeated, since a process that is starting ignores it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        elif is_first:
            job.cancel(check=False)
