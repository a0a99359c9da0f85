"""The speed of this machine: seconds and memory of anchor networks, and estimates for others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from search.planning.policy import ANCHORS, BATCH_SIZE
from search.trial_process.protocol import Measured

#: Part of the memory that a training may fill, and the part of a batch that must fit at once: a
#: larger batch is computed in parts.
MEMORY_SHARE, PART_OF_BATCH = 0.9, 0.25


@dataclass(frozen=True)
class Line:
    """A quantity that depends on the pixels of an image: fixed + per_pixel * size^2."""

    fixed: float
    per_pixel: float

    def at(self, image_size: int) -> float:
        """Return the value at an image size in pixels."""
        return self.fixed + self.per_pixel * image_size**2

    @classmethod
    def through(cls, values: Mapping[int, float]) -> Line:
        """Return the line through the values at the smallest and the largest size; not falling.

        With one size, or where the larger image is not slower, it is proportional to the pixels.
        """
        small, large = min(values), max(values)
        slope = (values[large] - values[small]) / max(1, large**2 - small**2)
        fixed = values[large] - slope * large**2
        if slope <= 0 or fixed < 0:
            return cls(0.0, values[large] / large**2)
        return cls(fixed, slope)


@dataclass(frozen=True)
class AnchorSpeed:
    """Measurements of an anchor network.

    image_s: seconds to train an image. memory: bytes of a step of BATCH_SIZE images.
    macs_per_pixel: multiply-adds of a forward pass.
    """

    image_s: Line
    memory: Line
    macs_per_pixel: float

    @classmethod
    def from_measured(cls, measured: Mapping[int, Measured]) -> AnchorSpeed:
        """Fit the measurements, by image size in pixels."""
        size = max(measured)
        return cls(
            Line.through({s: m.seconds_per_step / BATCH_SIZE for s, m in measured.items()}),
            Line.through({s: float(m.peak_memory) for s, m in measured.items()}),
            measured[size].macs / size**2,
        )

    def scaled(self, macs_per_pixel: float) -> AnchorSpeed:
        """Return the estimate for a network of other multiply-adds."""
        factor = macs_per_pixel / self.macs_per_pixel
        image_s, memory = (
            Line(line.fixed, line.per_pixel * factor) for line in (self.image_s, self.memory)
        )
        return AnchorSpeed(image_s, memory, macs_per_pixel)


@dataclass(frozen=True)
class MachineSpeeds:
    """Measurements of one slot.

    anchors: by their names in ANCHORS, at least one. memory_bytes: of the slot; None if not known.
    is_cpu: whether slots share the threads of a CPU.
    """

    anchors: Mapping[str, AnchorSpeed]
    memory_bytes: float | None = None
    is_cpu: bool = False

    def of(self, anchor: str) -> AnchorSpeed:
        """Return the speed of an anchor; if it was not measured, from the nearest one's."""
        if anchor in self.anchors:
            return self.anchors[anchor]
        macs = ANCHORS[anchor].macs_per_pixel
        nearest = min(
            self.anchors.values(), key=lambda each: abs(math.log(each.macs_per_pixel / macs))
        )
        return nearest.scaled(macs)

    def fits(self, anchor: str, image_size: int) -> bool:
        """Return whether the memory suffices to train an anchor, its batches in parts."""
        if self.memory_bytes is None:
            return True
        needed = self.of(anchor).memory.at(image_size) * PART_OF_BATCH
        return needed <= MEMORY_SHARE * self.memory_bytes
