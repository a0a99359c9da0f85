"""What a worker computes on, and the event that stops it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class StopEvent(Protocol):
    """A ``threading.Event`` or an equivalent; set when a worker must requeue its trial and exit."""

    def is_set(self) -> bool:
        """Return whether the event is set."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set, at most ``timeout`` seconds; return whether it is."""


@dataclass(frozen=True)
class Slot:
    """Resources of one worker.

    Attributes:
        device: auto, cpu, mps, cuda or cuda:N.
        threads: CPU threads.
        share: part of the device, in (0, 1]; 0.5 where two workers share a GPU.
        memory_gb: limit of the training's host memory in GB of 10^9 bytes; None for no limit.
    """

    device: str = "auto"
    threads: int = 1
    share: float = 1.0
    memory_gb: float | None = None
