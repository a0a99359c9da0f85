"""What a worker computes on."""

from __future__ import annotations

from dataclasses import dataclass


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
