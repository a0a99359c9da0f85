"""The jobs of all workers on a cluster: who ended, who is lost, who takes the place."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError
from search.trial_process.slot import StopEvent
from search.workers.launchers.slurm_job import WorkerJob, squeue

#: So often in a row a worker's job is replaced; one that ran for STEADY seconds breaks the row.
MAX_LOSSES = 5
STEADY = 600.0
#: Seconds before the first replacement; they double with each further loss in a row.
FIRST_PAUSE = 2.0
#: Seconds that running workers have to see for themselves that the study is done.
GRACE = 60.0
#: Seconds that cancelled jobs have to put their trials down; Slurm's own KillWait is 30.
CANCEL = 45.0


@dataclass
class _Berth:
    """One worker's place: its job while it has one, and how many it lost in a row."""

    job: Any = None
    running_since: float | None = None
    losses: int = 0
    due: float = 0.0
    open: bool = True


class Fleet:
    """The jobs that a submitit executor runs; one worker each.

    local: they are processes of this host, and not Slurm's.
    """

    def __init__(
        self,
        executor: Any,
        work: WorkerJob,
        on_event: Callable[[str], None],
        *,
        local: bool,
    ) -> None:
        self.executor, self.work, self.on_event, self.local = executor, work, on_event, local
        #: Seconds between two looks; slurmctld is not to be asked often.
        self.every = 0.5 if local else 10.0
        self.berths: list[_Berth] = []
        #: All that were ever submitted: one with a result may still be on its way out.
        self.jobs: list[Any] = []

    def start(self, workers: int) -> None:
        """Submits them all as one job array; InputError where the cluster refuses it."""
        try:
            jobs = self._submit(workers)
        except RuntimeError as error:
            said = " ".join(str(error).replace("sbatch: error:", "").split())
            raise InputError(f"slurm: sbatch refused the jobs: {said}") from None
        self.berths = [_Berth(job) for job in jobs]
        self.on_event(f"slurm: submitted {', '.join(str(job.job_id) for job in jobs)}")

    def look(self) -> bool:
        """Sees who ended and replaces who was lost; whether any worker is left.

        InputError where a worker ended with one.
        """
        # States first: a job that is gone by then has left its result before that is looked for.
        states = self._states()
        for berth in self.berths:
            if berth.job is not None:
                self._look_at(berth, states)
            elif berth.open and time.monotonic() >= berth.due:
                self._replace(berth)
        return any(berth.open for berth in self.berths)

    def let_end(self, stopping: StopEvent) -> None:
        """Waits for running jobs to end by themselves, for GRACE seconds or until stopping."""
        end = time.monotonic() + GRACE
        while not stopping.is_set() and time.monotonic() < end:
            states = self._states()
            if states is not None and "RUNNING" not in states.values():
                return
            stopping.wait(min(self.every, 2.0))

    def cancel(self) -> None:
        """Cancels what is queued or running, and waits until it is gone."""
        end, told = time.monotonic() + CANCEL, False
        while left := self._left():
            if time.monotonic() >= end:
                self._give_up(left)
                return
            for job in left:
                self._tell_to_end(job, told)
            told = True
            time.sleep(min(self.every, 2.0))

    def refuse_hopeless(self, folder: Path) -> None:
        """Failed where no worker came to an end of its own; folder: where the logs are."""
        if all(berth.losses > MAX_LOSSES for berth in self.berths):
            from search.errors import JobFailed  # brings in torch, which nothing else here needs

            raise JobFailed(
                f"slurm: every worker lost {MAX_LOSSES + 1} jobs in a row; see {folder}"
            )

    def _submit(self, count: int) -> list[Any]:
        from submitit.helpers import clean_env

        # Submitted from within a job, the new ones would take over what that one was given.
        inside = "SLURM_JOB_ID" in os.environ and not self.local
        with clean_env() if inside else contextlib.nullcontext():
            jobs = list(self.executor.map_array(self.work, range(count)))
        self.jobs += jobs
        return jobs

    def _look_at(self, berth: _Berth, states: Mapping[str, str] | None) -> None:
        if berth.job.paths.result_pickle.exists():
            self._read_result(berth)
        elif states is not None and berth.job.job_id not in states:
            self._lost(berth, "is gone without a result")
        elif states is not None and states[berth.job.job_id] == "RUNNING":
            berth.running_since = berth.running_since or time.monotonic()

    def _read_result(self, berth: _Berth) -> None:
        if berth.job.exception() is not None:
            self._lost(berth, f"failed; see {berth.job.paths.stderr}")
            return
        result = berth.job.result()
        if isinstance(result, str):
            raise InputError(result)
        self.on_event(f"slurm: job {berth.job.job_id} ended: {result.why}, {result.trials} trials")
        berth.job, berth.open = None, False

    def _lost(self, berth: _Berth, how: str) -> None:
        now = time.monotonic()
        if berth.running_since is not None and now - berth.running_since >= STEADY:
            berth.losses = 0
        told = f"slurm: job {berth.job.job_id} {how}" if berth.job else f"slurm: {how}"
        pause = FIRST_PAUSE * 2**berth.losses
        berth.job, berth.running_since, berth.losses = None, None, berth.losses + 1
        berth.due, berth.open = now + pause, berth.losses <= MAX_LOSSES
        self.on_event(f"{told}; {f'another in {pause:g} s' if berth.open else 'given up'}")

    def _replace(self, berth: _Berth) -> None:
        try:
            (berth.job,) = self._submit(1)
        except RuntimeError as error:  # slurmctld may be away for a while
            self._lost(berth, f"a job could not be submitted: {' '.join(str(error).split())}")
            return
        self.on_event(f"slurm: submitted {berth.job.job_id} in place of a lost job")

    def _states(self) -> dict[str, str] | None:
        """Job ids to states of what is queued or running; None where squeue does not answer."""
        if self.local:
            return {job.job_id: "RUNNING" for job in self.jobs if not job.done()}
        # Not sacct, which submitit asks: a cluster without accounting has none.
        rows = squeue("--array", f"--user={os.getuid()}", "--format=%i|%T")
        if rows is None:
            return None
        known = dict(row.split("|", 1) for row in rows.split())
        return {job.job_id: known[job.job_id] for job in self.jobs if job.job_id in known}

    def _left(self) -> list[Any]:
        states = self._states()
        return [job for job in self.jobs if states is None or job.job_id in states]

    def _tell_to_end(self, job: Any, again: bool) -> None:
        if self.local:
            # submitit's own cancel kills a second later: too soon to put a trial down. Told
            # again each time, since a process that is just starting does not hear it yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        elif not again:
            job.cancel(check=False)

    def _give_up(self, left: list[Any]) -> None:
        self.on_event(f"slurm: still there: {', '.join(str(job.job_id) for job in left)}")
        if self.local:
            for job in left:
                job.cancel()
