"""POSTPROCESS: from a network's probabilities to a mask, in three stages.

First the probabilities are refined at the network's size, using the image (``crf``). Then they are
resized to the mask's own size and thresholded (``threshold``). Then the other entries, operations
on the mask, are applied in the order of the chain.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.inference.crf import crf
from lesionseg.space import ComponentConfig, Float, RegistryEntry, build

Chain = tuple[ComponentConfig, ...]
Probability = NDArray[np.float32]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

#: Threshold of a chain without one; a pixel is lesion if its probability is above it.
DEFAULT_THRESHOLD = 0.5


def open_mask(mask: Mask, radius: float) -> Mask:
    """Remove parts that a disc does not fit into; radius in percent of the diagonal."""
    return _dilate(_erode(mask, radius), radius)


def close_mask(mask: Mask, radius: float) -> Mask:
    """Fill background that a disc does not fit into; radius in percent of the diagonal."""
    return _erode(_dilate(mask, radius), radius)


def keep_largest(mask: Mask) -> Mask:
    """Keep the largest 8-connected component; of equal ones the first from the top left."""
    n, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if n < 2:
        return mask
    largest: Mask = labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    return largest


def fill_holes(mask: Mask) -> Mask:
    """Fill background that is not 4-connected with the border."""
    # By components: SciPy's binary_fill_holes takes seconds on a photograph.
    n, labels = cv2.connectedComponents((~mask).view(np.uint8), connectivity=4)
    is_outside = np.zeros(n, dtype=np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_outside[edge] = True
    is_outside[0] = False  # the label of the lesion
    filled: Mask = ~is_outside[labels]
    return filled


#: Every entry is applied to its input: ``threshold`` to probabilities, ``crf`` to probabilities
#: and the image, the others to a mask.
POSTPROCESS: dict[str, RegistryEntry] = {
    "threshold": RegistryEntry(
        lambda probability, value: probability > value,
        {"value": Float(0.05, 0.95, default=DEFAULT_THRESHOLD)},
        "lesion above this probability",
    ),
    "largest": RegistryEntry(keep_largest, {}, "the largest component only"),
    "fill_holes": RegistryEntry(fill_holes, {}, "no holes"),
    "opening": RegistryEntry(
        open_mask,
        {"radius": Float(0.2, 5.0, default=1.0, log=True)},
        "without specks and thin parts; radius in % of the diagonal",
    ),
    "closing": RegistryEntry(
        close_mask,
        {"radius": Float(0.2, 5.0, default=1.0, log=True)},
        "without cracks and narrow bays; radius in % of the diagonal",
    ),
    "crf": RegistryEntry(
        crf,
        {
            "weight": Float(0.5, 20.0, default=4.0, log=True),
            "colour": Float(2.0, 80.0, default=15.0, log=True),
        },
        "edges follow the image's colours",
    ),
}


def refine_probability(chain: Chain, probability: Probability, image: Image) -> Probability:
    """Apply the first stage, at the network's size.

    Args:
        chain: entries of POSTPROCESS; other stages are ignored.
        probability: float32 [S, S] in [0, 1].
        image: uint8 [S, S, 3], RGB.

    Returns:
        float32 [S, S] in [0, 1]; the same array if the chain has no CRF.
    """
    for step in chain:
        if step.name == "crf":
            probability = build("postprocess", POSTPROCESS, step, probability, image)
    return probability


def to_mask(chain: Chain, probability: Probability, shape: tuple[int, int]) -> Mask:
    """Apply the second and third stage to probabilities [S, S]; the mask is bool [H, W]."""
    return probability_to_mask(chain, resize_probability(probability, shape))


def resize_probability(probability: Probability, shape: tuple[int, int]) -> Probability:
    """Resize probabilities [S, S] to the shape (H, W) by linear interpolation."""
    source = probability.astype(np.float32, copy=False)
    full = cv2.resize(source, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(full, np.float32)


def probability_to_mask(chain: Chain, full: Probability) -> Mask:
    """Apply the second and third stage to probabilities [H, W] of the mask's size."""
    default = ComponentConfig("threshold")
    threshold = next((step for step in chain if step.name == "threshold"), default)
    return apply_operations(chain, build("postprocess", POSTPROCESS, threshold, full))


def apply_operations(chain: Chain, mask: Mask) -> Mask:
    """Apply the third stage only, to a mask bool [H, W]."""
    for step in chain:
        if step.name not in ("threshold", "crf"):
            mask = build("postprocess", POSTPROCESS, step, mask)
    return mask


# Erosion and dilation by a disc use a distance transform: their time does not depend on the
# radius. Outside the image is neither lesion nor background, so that full masks stay full.


def _erode(mask: Mask, percent: float) -> Mask:
    return mask if mask.all() else _distance(mask) > float(percent / 100 * np.hypot(*mask.shape))


def _dilate(mask: Mask, percent: float) -> Mask:
    return ~_erode(~mask, percent)


def _distance(mask: Mask) -> NDArray[np.float32]:
    """Return the distance of each pixel to the nearest one outside the mask."""
    pixels = mask.view(np.uint8)
    distance = cv2.distanceTransform(pixels, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32)
