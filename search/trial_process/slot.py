"""What a worker is told when it joins a study: where the study is, and what to compute on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class StopEvent(Protocol):
    """A threading.Event, or what behaves like one: set when the work is to be put down."""

    def is_set(self) -> bool:
        """Whether it was asked for."""

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is asked for, at most so many seconds; whether it was."""


@dataclass(frozen=True)
class Slot:
    """What a worker computes on.

    device: auto, cpu, mps, cuda or cuda:N. threads: of the CPU.
    share: the part of that device which is this worker's, in (0, 1]: 0.5 where two share a GPU.
    memory_gb: what its training may take of the host's memory, in GB of 10^9 bytes; None for all.
    """

    device: str = "auto"
    threads: int = 1
    share: float = 1.0
    memory_gb: float | None = None


@dataclass(frozen=True)
class WorkerResult:
    """How a worker ended: so many trials brought to an end, and why it stopped.

    why: "done" (the study needs nobody any more), "asked" (it was told to stop), "enough" (its
    own share of trials is spent).
    """

    trials: int
    why: str
