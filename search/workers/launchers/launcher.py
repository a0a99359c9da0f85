"""What all launchers share: their context, restarts with back-off and the supervision loop."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.errors import JobFailed
from search.study.location import StudyLocation


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off of one worker; one that ran for ``steady_s`` begins anew."""

    max_failures: int = 10
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    steady_s: float = 120.0  # longer than the start of a worker that waits for its database


@dataclass(frozen=True)
class LaunchContext:
    """A study to run workers for, and callbacks.

    Attributes:
        is_done: whether the study needs no worker; called several times per minute.
        on_event: called with one line about a worker.
    """

    location: StudyLocation
    stop_event: threading.Event
    is_done: Callable[[], bool] = lambda: False
    on_event: Callable[[str], None] = lambda message: None
    restart_policy: RestartPolicy = RestartPolicy()

    def must_stop(self) -> bool:
        """Return whether all workers must end."""
        return self.stop_event.is_set() or self.is_done()


class ManagedWorker:
    """A worker that is started again after a failure.

    handle: its process, actor or job. failures: in a row.
    """

    def __init__(self, name: str, context: LaunchContext, handle: Any = None) -> None:
        self.name, self.context, self.handle = name, context, handle
        self.is_done, self.failures = False, 0
        self._started_at, self._due_at = math.inf, 0.0

    @property
    def is_given_up(self) -> bool:
        """Whether the worker failed too often in a row."""
        return self.failures >= self.context.restart_policy.max_failures

    def is_due(self) -> bool:
        """Return whether the worker must be started now."""
        is_ended = self.is_done or self.is_given_up
        return self.handle is None and not is_ended and time.monotonic() >= self._due_at

    def record_start(self) -> None:
        """Record that the worker runs; only the first call since its last failure counts."""
        self._started_at = min(self._started_at, time.monotonic())

    def record_failure(self, cause: str) -> None:
        """Report that the worker has no process any more, and when it starts again."""
        policy, now = self.context.restart_policy, time.monotonic()
        was_steady = now - self._started_at >= policy.steady_s
        self.failures = 1 if was_steady else self.failures + 1
        self.handle, self._started_at = None, math.inf
        pause = min(policy.longest_pause_s, policy.first_pause_s * 2.0 ** (self.failures - 1))
        self._due_at = now + pause
        action = f"restarts in {pause:g} s"
        if self.is_given_up:
            action = f"given up after {self.failures} failures in a row"
        self.context.on_event(f"{cause}; {action}")

    def give_up(self, cause: str) -> None:
        """Report that the worker ended and why it is not started again."""
        self.handle, self.failures = None, self.context.restart_policy.max_failures
        self.context.on_event(f"{cause}; it is not started again")


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
        is_given_up = bool(self.workers) and all(worker.is_given_up for worker in self.workers)
        if is_given_up and not self.context.must_stop():
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
            worker.handle is not None or not (worker.is_done or worker.is_given_up)
            for worker in self.workers
        )

    @abstractmethod
    def start(self, worker: Any) -> None:
        """Start a worker that has no process."""

    @abstractmethod
    def check(self, worker: Any) -> None:
        """Handle the end of a worker, if it has ended."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all workers."""
