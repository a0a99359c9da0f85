"""Prediction: the predicted mask of an image, and its statistics."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lesionseg.inference.postprocess import Mask, Probability

#: A component counts as a lesion from this share of the largest component's area.
MIN_AREA_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted mask of one image and its statistics.

    mask: bool [H, W], True on the lesion, at the size of the upright image.
    probability: float32 [H, W] in [0, 1], before thresholding.
    area: number of pixels.
    share: share of the image, in [0, 1].
    centre: mean x and y of the pixels, with (0, 0) at the centre of the top-left pixel; None for
        an empty mask.
    confidence: mean probability of the pixels, in [0, 1]; None for an empty mask. It does not
        account for missed lesions.
    touches_border: the mask reaches the image border, so that the lesion may be cut off.
    has_several_lesions: two or more components have a tenth of the largest one's area.
    disagreement: 1 minus the weighted mean Dice between the masks of an ensemble's members and of
        the ensemble, in [0, 1], at the network's size; large where the mask should be looked at.
        None for a single network.
    uncertainty: float32 [H, W] in [0, 0.5], the weighted standard deviation of the members'
        probabilities; None for a single network.
    """

    mask: Mask
    probability: Probability
    area: int
    share: float
    centre: tuple[float, float] | None
    confidence: float | None
    touches_border: bool
    has_several_lesions: bool
    disagreement: float | None = None
    uncertainty: Probability | None = None

    @property
    def is_empty(self) -> bool:
        return self.area == 0


def measure_mask(mask: Mask, probability: Probability) -> Prediction:
    """Compute the statistics of a mask; the arguments are as in Prediction."""
    pixels = mask.view(np.uint8)
    area = int(np.count_nonzero(pixels))
    if not area:
        return Prediction(mask, probability, 0, 0.0, None, None, False, False)
    moments = cv2.moments(pixels, binaryImage=True)
    _, _, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return Prediction(
        mask,
        probability,
        area,
        area / mask.size,
        (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]),
        # OpenCV's mean does not copy the pixels of large photographs.
        float(cv2.mean(probability, mask=pixels)[0]),
        any(bool(edge.any()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])),
        int(np.count_nonzero(areas >= MIN_AREA_SHARE * areas.max())) > 1,
    )
