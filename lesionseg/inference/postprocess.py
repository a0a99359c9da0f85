"""POSTPROCESS: from a network's probabilities to a mask, in three stages.

First the probabilities are refined at the network's size, using the image. Then they are resized
to the mask's own size and thresholded. Then operations are applied to the mask, in the order of
the chain. The type that an entry builds determines its stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import InputError
from lesionseg.inference.crf import crf
from lesionseg.space import ComponentConfig, Float, RegistryEntry, build

Chain = tuple[ComponentConfig, ...]
Probability = NDArray[np.float32]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

#: Threshold of a chain without one; a pixel is lesion if its probability is above it.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Refinement:
    """First stage: probabilities [S, S] from probabilities and the image uint8 [S, S, 3]."""

    apply: Callable[[Probability, Image], Probability]


@dataclass(frozen=True)
class Threshold:
    """Second stage: pixels strictly above the value are lesion."""

    value: float


@dataclass(frozen=True)
class Operation:
    """Third stage: a mask bool [H, W] from a mask."""

    apply: Callable[[Mask], Mask]


def build_crf(weight: float, colour: float) -> Refinement:
    """Align edges with the image's colours; ``lesionseg.inference.crf``, arXiv:1210.5644."""
    return Refinement(partial(crf, weight=weight, colour=colour))


def build_opening(radius: float) -> Operation:
    """Remove parts that a disc does not fit into; radius in percent of the diagonal."""
    return Operation(lambda mask: _dilate(_erode(mask, radius), radius))


def build_closing(radius: float) -> Operation:
    """Fill background that a disc does not fit into; radius in percent of the diagonal."""
    return Operation(lambda mask: _erode(_dilate(mask, radius), radius))


POSTPROCESS: dict[str, RegistryEntry] = {
    "threshold": RegistryEntry(
        Threshold,
        {"value": Float(0.05, 0.95, default=DEFAULT_THRESHOLD)},
        "lesion above this probability",
    ),
    "largest": RegistryEntry(lambda: Operation(_largest), {}, "the largest component only"),
    "fill_holes": RegistryEntry(lambda: Operation(_fill_holes), {}, "no holes"),
    "opening": RegistryEntry(
        build_opening,
        {"radius": Float(0.2, 5.0, default=1.0, log=True)},
        "without specks and thin parts; radius in % of the diagonal",
    ),
    "closing": RegistryEntry(
        build_closing,
        {"radius": Float(0.2, 5.0, default=1.0, log=True)},
        "without cracks and narrow bays; radius in % of the diagonal",
    ),
    "crf": RegistryEntry(
        build_crf,
        {
            "weight": Float(0.5, 20.0, default=4.0, log=True),
            "colour": Float(2.0, 80.0, default=15.0, log=True),
        },
        "edges follow the image's colours",
    ),
}


def check_chain(chain: Chain) -> Chain:
    """Return the chain with all parameters written out.

    Raises:
        InputError: an unknown name or parameter, a value outside its range, or more than one
            step of the first or second stage.
    """
    steps = [_build(component) for component in chain]
    for stage in (Threshold, Refinement):
        names = [c.name for c, step in zip(chain, steps, strict=True) if type(step) is stage]
        if len(names) > 1:
            raise InputError(
                f"postprocess: a chain has at most one {' or '.join(dict.fromkeys(names))}, "
                f"got {len(names)}; leave out all but one"
            )
    return tuple(ComponentConfig(c.name, POSTPROCESS[c.name].resolve(c.params)) for c in chain)


def refine_probability(chain: Chain, probability: Probability, image: Image) -> Probability:
    """Apply the first stage, at the network's size.

    Args:
        chain: entries of POSTPROCESS; other stages are ignored.
        probability: float32 [S, S] in [0, 1].
        image: uint8 [S, S, 3], RGB.

    Returns:
        float32 [S, S] in [0, 1]; the same array if the chain has no refinement.
    """
    for step in map(_build, chain):
        if isinstance(step, Refinement):
            probability = step.apply(probability, image)
    return probability


def to_mask(chain: Chain, probability: Probability, shape: tuple[int, int]) -> Mask:
    """Apply the second and third stage.

    Args:
        chain: entries of POSTPROCESS; the first stage is ignored.
        probability: float32 [S, S] of ``refine_probability``.
        shape: height and width of the mask.

    Returns:
        bool [H, W].
    """
    return probability_to_mask(chain, resize_probability(probability, shape))


def resize_probability(probability: Probability, shape: tuple[int, int]) -> Probability:
    """Resize probabilities [S, S] to the shape (H, W) by linear interpolation."""
    full: Probability = np.asarray(
        cv2.resize(
            probability.astype(np.float32, copy=False), shape[::-1], interpolation=cv2.INTER_LINEAR
        ),
        np.float32,
    )
    return full


def probability_to_mask(chain: Chain, full: Probability) -> Mask:
    """Apply the second and third stage to probabilities [H, W] of the mask's size."""
    thresholds = [step.value for step in map(_build, chain) if isinstance(step, Threshold)]
    mask: Mask = full > (thresholds[0] if thresholds else DEFAULT_THRESHOLD)
    return apply_operations(chain, mask)


def apply_operations(chain: Chain, mask: Mask) -> Mask:
    """Apply the third stage only, to a mask bool [H, W]."""
    for step in map(_build, chain):
        if isinstance(step, Operation):
            mask = step.apply(mask)
    return mask


def _build(component: ComponentConfig) -> Refinement | Threshold | Operation:
    step: Refinement | Threshold | Operation = build("postprocess", POSTPROCESS, component)
    return step


def _largest(mask: Mask) -> Mask:
    """Keep the largest 8-connected component; of equal ones the first from the top left."""
    n, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if n < 2:
        return mask
    largest: Mask = labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    return largest


def _fill_holes(mask: Mask) -> Mask:
    """Fill background that is not 4-connected with the border."""
    # By components: SciPy's binary_fill_holes takes seconds on a photograph.
    n, labels = cv2.connectedComponents((~mask).view(np.uint8), connectivity=4)
    is_outside = np.zeros(n, dtype=np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_outside[edge] = True
    is_outside[0] = False  # the label of the lesion
    filled: Mask = ~is_outside[labels]
    return filled


# Erosion and dilation by a disc use a distance transform: their time does not depend on the
# radius. Outside the image is neither lesion nor background, so that full masks stay full.


def _erode(mask: Mask, percent: float) -> Mask:
    if mask.all():
        return mask
    eroded: Mask = _distance(mask) > _to_pixels(mask, percent)
    return eroded


def _dilate(mask: Mask, percent: float) -> Mask:
    if not mask.any():
        return mask
    dilated: Mask = _distance(~mask) <= _to_pixels(mask, percent)
    return dilated


def _distance(mask: Mask) -> NDArray[np.float32]:
    """Return the distance of each pixel to the nearest one outside the mask."""
    distance: NDArray[np.float32] = np.asarray(
        cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32
    )
    return distance


def _to_pixels(mask: Mask, percent: float) -> float:
    return float(percent / 100 * np.hypot(*mask.shape))
