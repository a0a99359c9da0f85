"""Supervision of one training process: its messages, its memory and its time limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lesionseg.training.training_state import ASSUMED_BYTES_PER_S
from lesionseg.training.types import EpochRecord
from search.trial_process.process import TrialProcess, measure_memory
from search.trial_process.protocol import (
    ErrorReason,
    JobError,
    JobOutcome,
    ModelBuilt,
    StateSaved,
    Suspended,
    TrainJob,
)

#: Seconds between two checks of a silent process, and between two measurements of its memory.
POLL_S, MEMORY_POLL_S = 0.2, 0.5
#: Seconds within which a signal that reached a training has reached its worker too.
SIGNAL_DELAY_S = 0.1
#: Seconds that a training has to save its state: at least and at most. Container runtimes kill
#: after 10 s by default, SLURM and Kubernetes after 30 s.
SUSPEND_TIMEOUT_S, MAX_SUSPEND_TIMEOUT_S = 7.0, 25.0
#: Seconds per parameter of the first save, estimated: five copies of 4 bytes.
SAVE_S_PER_PARAMETER = 20 / ASSUMED_BYTES_PER_S


class LeaseLost(RuntimeError):
    """Another worker holds the trial; this one must not write to it any more."""


@dataclass(frozen=True)
class StopConditions:
    """When a training ends early; checked several times per second.

    total_s, stall_s, memory_bytes: limits, None for none; stall_s is between two messages, and
    total_s includes elapsed_s before this training. suspend: save the state and end; lease_lost:
    end now.
    """

    total_s: float | None = None
    stall_s: float | None = None
    memory_bytes: int | None = None
    elapsed_s: float = 0.0
    suspend: Callable[[], bool] = lambda: False
    lease_lost: Callable[[], bool] = lambda: False


def supervise(
    job: TrainJob, on_message: Callable[[Any], bool], conditions: StopConditions
) -> JobOutcome:
    """Run a training in a process of its own and return its last message or how it ended.

    ``on_message`` is called with every other message; for ModelBuilt and EpochRecord its result
    is whether to stop. Raises LeaseLost if another worker holds the trial.
    """
    with TrialProcess(job) as process:
        return Supervisor(process, on_message, conditions).run()


def supervise_in_parts(
    job: TrainJob,
    on_message: Callable[[Any], bool],
    conditions: StopConditions,
    on_out_of_memory: Callable[[int, str], None] = lambda factor, message: None,
) -> JobOutcome:
    """Run ``supervise``, again with batches in more parts as long as memory does not suffice.

    on_out_of_memory: called before each repetition with the new accumulation factor and the
        error's message.
    """
    while True:
        outcome = supervise(job, on_message, conditions)
        if not isinstance(outcome, JobError) or outcome.reason != ErrorReason.OOM:
            return outcome
        factor = 2 * job.accumulation_factor
        if job.config["accumulate"] * factor > job.config["batch_size"]:
            return outcome  # a part would have less than one image
        job = replace(job, accumulation_factor=factor)
        on_out_of_memory(factor, outcome.message)


@dataclass
class Supervisor:
    """Relays the messages of one process and enforces its conditions.

    suspended_at: when the request to suspend was sent.
    saved_epoch: number of epochs in the last saved state.
    save_s: seconds that a save of the state takes, first an estimate.
    """

    process: TrialProcess
    on_message: Callable[[Any], bool]
    conditions: StopConditions
    suspended_at: float | None = None
    saved_epoch: int = 0
    save_s: float = 0.0

    def __post_init__(self) -> None:
        self.started_at = self.last_message_at = self.memory_checked_at = time.monotonic()

    def run(self) -> JobOutcome:
        while True:
            message = self.process.receive(POLL_S)
            if isinstance(message, JobOutcome):
                if isinstance(message, JobError) and message.reason == ErrorReason.CRASH:
                    # A service manager signals the whole process group, trainings included.
                    time.sleep(SIGNAL_DELAY_S)
                    if self.conditions.suspend():
                        return Suspended(self.saved_epoch, saved=False)
                return message
            if message is not None:
                self._handle(message)
            outcome = self._check()
            if outcome is not None:
                self.process.kill()
                return outcome

    def _handle(self, message: Any) -> None:
        if isinstance(message, ModelBuilt):
            self.save_s = message.params * SAVE_S_PER_PARAMETER
        if isinstance(message, StateSaved):
            self.saved_epoch, self.save_s = message.epoch, message.seconds
        stop = self.on_message(message)
        # The request to suspend is the reply already.
        if isinstance(message, ModelBuilt | EpochRecord) and self.suspended_at is None:
            self.process.reply(stop=stop)
        self.last_message_at = time.monotonic()  # the time of on_message is not a stall

    def _check(self) -> JobOutcome | None:
        """Return the outcome of a training that must be killed."""
        now = time.monotonic()
        if self.conditions.lease_lost():
            self.process.kill()
            raise LeaseLost("another worker holds the trial")
        if self.suspended_at is None and self.conditions.suspend():
            self.suspended_at = now
            self.process.suspend()
        if self.suspended_at is not None:
            # Twice the last duration, besides the end of the current step.
            timeout_s = SUSPEND_TIMEOUT_S + 2 * self.save_s
            is_late = now - self.suspended_at > min(timeout_s, MAX_SUSPEND_TIMEOUT_S)
            return Suspended(self.saved_epoch, saved=False) if is_late else None
        return self.check_time(now) or self._check_memory(now)

    def check_time(self, now: float) -> JobError | None:
        """Return an error if a time limit is exceeded. now: seconds of the monotonic clock."""
        total_s, stall_s = self.conditions.total_s, self.conditions.stall_s
        if total_s is not None and self.conditions.elapsed_s + now - self.started_at > total_s:
            text = f"it took longer than {total_s / 60:g} minutes (budget.trial_minutes)"
        elif stall_s is not None and now - self.last_message_at > stall_s:
            text = f"no step was done in {stall_s / 60:g} minutes (budget.stall_minutes)"
        else:
            return None
        return JobError(ErrorReason.TIMEOUT, text)

    def _check_memory(self, now: float) -> JobError | None:
        limit = self.conditions.memory_bytes
        if limit is None or now - self.memory_checked_at < MEMORY_POLL_S:
            return None
        self.memory_checked_at = now
        used = measure_memory(self.process.pid)
        if used <= limit:
            return None
        text = f"it used {used / 1e9:.1f} GB of host memory; the limit is {limit / 1e9:.1f} GB"
        return JobError(ErrorReason.OOM, text)
