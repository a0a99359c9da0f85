"""Findings: a predicted mask in numbers that fit a table."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Probability = NDArray[np.float32]

#: A component counts as a lesion of its own from this share of the largest one's area on.
OWN = 0.1


@dataclass(frozen=True)
class MaskStats:
    """What is said of one mask, at its own size.

    area: its pixels. share: of the picture, in [0, 1].
    centre: mean x and y of its pixels, (0, 0) being the centre of the pixel at the top left; None
        where nothing was found.
    confidence: the mean of the network's probability over its pixels, in [0, 1]; None where
        nothing was found. It says how sure the network is of what it marked, and nothing of what
        it missed.
    touches_border: it reaches the picture's edge, so that the lesion may go on beyond.
    several: it has two or more components of at least a tenth of the largest's area.
    """

    area: int
    share: float
    centre: tuple[float, float] | None
    confidence: float | None
    touches_border: bool
    has_several_lesions: bool

    @property
    def is_empty(self) -> bool:
        """Whether the mask is empty."""
        return self.area == 0


def measure_mask(mask: Mask, probability: Probability) -> MaskStats:
    """The findings of a mask [H, W] and the probabilities [H, W] that it was cut from."""
    plain = mask.view(np.uint8)
    area = int(np.count_nonzero(plain))
    if not area:
        return MaskStats(0, 0.0, None, None, False, False)
    moments = cv2.moments(plain, binaryImage=True)
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return MaskStats(
        area,
        area / mask.size,
        (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]),
        # OpenCV's needs no copy of the pixels, of which a large photograph has many.
        float(cv2.mean(probability, mask=plain)[0]),
        any(bool(edge.any()) for edge in edges),
        _several(plain),
    )


def _several(plain: NDArray[np.uint8]) -> bool:
    _, _, stats, _ = cv2.connectedComponentsWithStats(plain, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int(np.count_nonzero(areas >= OWN * areas.max())) > 1
