"""What all launchers share: their context, restarts with back-off and the supervision loop."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from search.errors import JobFailed
from search.study.location import StudyLocation
from search.trial_process.slot import StopEvent


@dataclass
class RestartPolicy:
    """Exponential back-off for one worker.

    Pauses double from ``first_pause_s`` to ``longest_pause_s``. A worker that ran for
    ``steady_s``, or a trial that finished since the previous failure, resets the count.
    """

    max_failures: int = 10
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    steady_s: float = 300.0
    clock: Callable[[], float] = time.monotonic
    failures: int = field(default=0, init=False)
    _started_at: float | None = field(default=None, init=False)
    _due_at: float = field(default=0.0, init=False)
    _finished_trials: int | None = field(default=None, init=False)

    @property
    def is_exhausted(self) -> bool:
        """Whether the worker failed so often in a row that it is given up."""
        return self.failures >= self.max_failures

    def is_due(self) -> bool:
        """Return whether the worker may be started now."""
        return not self.is_exhausted and self.clock() >= self._due_at

    def record_start(self) -> None:
        self._started_at = self.clock()

    def record_failure(self, finished_trials: int) -> str:
        """Count a failure; return what happens next, for a message.

        finished_trials: of the whole study.
        """
        now = self.clock()
        was_steady = self._started_at is not None and now - self._started_at >= self.steady_s
        progressed = self._finished_trials is not None and finished_trials > self._finished_trials
        self.failures = 1 if was_steady or progressed else self.failures + 1
        self._finished_trials, self._started_at = finished_trials, None
        if self.is_exhausted:
            return f"given up after {self.failures} failures in a row"
        pause = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (self.failures - 1))
        self._due_at = now + pause
        return f"restarts in {pause:g} s"


@dataclass(frozen=True)
class LaunchContext:
    """A study to run workers for, and callbacks.

    Attributes:
        is_done: whether the study needs no worker.
        count_finished: number of the study's finished trials.
        on_poll: called several times per minute.
        on_event: called with one line about a worker.
        restart_policy: settings that are copied for each worker.
    """

    location: StudyLocation
    stop_event: StopEvent
    is_done: Callable[[], bool] = lambda: False
    count_finished: Callable[[], int] = lambda: 0
    on_poll: Callable[[], None] = lambda: None
    on_event: Callable[[str], None] = lambda message: None
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)

    def must_stop(self) -> bool:
        """Return whether all workers must end."""
        self.on_poll()
        return self.stop_event.is_set() or self.is_done()


class ManagedWorker:
    """A worker that is started again after a failure. handle: its process, actor or job."""

    def __init__(self, name: str, context: LaunchContext, handle: Any = None) -> None:
        self.name, self.context, self.handle = name, context, handle
        self.policy = replace(context.restart_policy)
        self.is_done = False

    def is_due(self) -> bool:
        """Return whether the worker must be started now."""
        return self.handle is None and not self.is_done and self.policy.is_due()

    def record_failure(self, cause: str) -> None:
        """Report that the worker has no process any more, and when it starts again."""
        self.handle = None
        action = self.policy.record_failure(self.context.count_finished())
        self.context.on_event(f"{cause}; {action}")


class Launcher(ABC):
    """Starts workers, restarts those that fail, and stops all of them at the end.

    last_failure: a hint for users about why workers fail.
    """

    poll_s: float

    def __init__(self, context: LaunchContext) -> None:
        self.context = context
        self.workers: list[Any] = []
        self.last_failure = ""

    def run(self) -> None:
        """Run the workers until each is done, or until the study or ``stop_event`` ends them.

        Raises:
            InputError: a worker's input is wrong.
            JobFailed: every worker was given up.
        """
        try:
            self.supervise()
        finally:
            self.stop()
        if self.is_given_up() and not self.context.must_stop():
            raise JobFailed(f"every worker was given up; {self.last_failure}")

    def supervise(self) -> None:
        """Poll until no worker is left or all must stop."""
        while not self.context.must_stop() and self.poll():
            self.context.stop_event.wait(self.poll_s)

    def poll(self) -> bool:
        """Handle ended workers and start due ones; return whether a worker is left."""
        for worker in self.workers:
            if worker.handle is not None:
                self.check(worker)
            elif worker.is_due():
                self.start(worker)
        return any(
            worker.handle is not None or not (worker.is_done or worker.policy.is_exhausted)
            for worker in self.workers
        )

    def is_given_up(self) -> bool:
        """Return whether every worker failed too often."""
        return bool(self.workers) and all(w.policy.is_exhausted for w in self.workers)

    @abstractmethod
    def start(self, worker: Any) -> None:
        """Start a worker that has no process."""

    @abstractmethod
    def check(self, worker: Any) -> None:
        """Handle the end of a worker, if it has ended."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all workers."""
