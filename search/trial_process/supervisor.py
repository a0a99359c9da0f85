"""One training in its child process, watched from outside: its words, its memory, its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lesionseg.training.train import EpochRecord
from search.trial_process.process import TrialProcess
from search.trial_process.protocol import (
    JobError,
    JobOutcome,
    ModelBuilt,
    StateSaved,
    Suspended,
    TrainJob,
)

#: Seconds between two looks at a child that says nothing.
TICK = 0.2
#: Seconds between two looks at its memory.
WEIGH = 0.5
#: Seconds within which a signal that reached a training has reached its worker too.
MOMENT = 0.1
#: Seconds that a child is given to save its state and to end. A scheduler that takes a machine
#: back gives a worker tens of seconds, sometimes ten.
PUT_DOWN_WITHIN = 7.0


class LeaseLost(RuntimeError):
    """The trial is another's now: nothing of it may be said any more."""


@dataclass(frozen=True)
class Limits:
    """What a training may take; None is no limit.

    seconds: in all. stall: between two signs of life. memory: bytes of the host's. spent: seconds
    that were taken before.
    """

    seconds: float | None = None
    stall: float | None = None
    memory: int | None = None
    spent: float = 0.0


@dataclass(frozen=True)
class StopConditions:
    """What the watcher asks now and then. suspend: whether to put the training down.

    fenced: whether the trial was taken away.
    """

    suspend: Callable[[], bool] = lambda: False
    fenced: Callable[[], bool] = lambda: False


def supervise(
    job: TrainJob, on_message: Callable[[Any], bool], limits: Limits, watch: StopConditions
) -> JobOutcome:
    """Runs a job in a child and gives its last message, whatever way it ended.

    on_message: called with every other message; its answer to Built and to an epoch's record is
    whether to stop. Raises Fenced, the child having been ended.
    """
    with TrialProcess(job) as child:
        return _Followed(child, on_message, limits, watch).to_its_end()


class _Followed:
    def __init__(
        self,
        child: TrialProcess,
        on_message: Callable[[Any], bool],
        limits: Limits,
        watch: StopConditions,
    ) -> None:
        self.child, self.on_message, self.limits, self.watch = child, on_message, limits, watch
        self.began = self.heard = self.weighed = time.monotonic()
        self.asked: float | None = None  # when it was asked to suspend
        self.saved = 0

    def to_its_end(self) -> JobOutcome:
        while True:
            message = self.child.next(TICK)
            if isinstance(message, JobOutcome):
                return self._judged(message)
            if message is not None:
                self._hear(message)
            end = self._intervene()
            if end is not None:
                self.child.kill()
                return end

    def _judged(self, end: JobOutcome) -> JobOutcome:
        """The end as it is to be told: one by a signal to all is the signal's doing."""
        if not (isinstance(end, JobError) and end.reason == "crash"):
            return end
        # A service manager ends the whole group, the server that trainings are forked from too.
        time.sleep(MOMENT)
        return Suspended(self.saved) if self.watch.suspend() else end

    def _hear(self, message: Any) -> None:
        if isinstance(message, StateSaved):
            self.saved = message.epoch
        stop = self.on_message(message)
        # One that was asked to suspend has its answer already.
        if isinstance(message, ModelBuilt | EpochRecord) and self.asked is None:
            self.child.reply(stop)
        self.heard = time.monotonic()  # what the answer took is not the child's silence

    def _intervene(self) -> JobOutcome | None:
        now = time.monotonic()
        if self.watch.fenced():
            self.child.kill()
            raise LeaseLost("the trial was handed on to another worker")
        if self.asked is None and self.watch.suspend():
            self.asked = now
            self.child.suspend()
        if self.asked is not None:
            return Suspended(self.saved) if now - self.asked > PUT_DOWN_WITHIN else None
        return self._overdue(now) or self._too_large(now)

    def _overdue(self, now: float) -> JobError | None:
        total, stall = self.limits.seconds, self.limits.stall
        if total is not None and self.limits.spent + now - self.began > total:
            text = f"it took longer than {total / 60:g} minutes (budget.trial_minutes)"
            return JobError("timeout", text)
        if stall is not None and now - self.heard > stall:
            text = f"no step was done in {stall / 60:g} minutes (budget.stall_minutes)"
            return JobError("timeout", text)
        return None

    def _too_large(self, now: float) -> JobError | None:
        limit = self.limits.memory
        if limit is None or now - self.weighed < WEIGH:
            return None
        self.weighed = now
        used = self.child.memory()
        if used <= limit:
            return None
        text = f"it took {used / 1e9:.1f} GB of the host's memory; its share is {limit / 1e9:.1f}"
        return JobError("oom", text)
