"""When a worker that died is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


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
        """Note that the worker was started."""
        self._started_at = self.clock()

    def record_failure(self, finished_trials: int) -> str:
        """Note that the worker failed; return what happens next, for a message.

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
