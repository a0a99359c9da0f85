"""POSTPROCESS: from a network's probabilities to a mask, in three stages.

First the probabilities are refined at the network's size, with the image beside them. Then they
are enlarged to the mask's own size and cut. Then the mask is worked on at that size, in the
chain's order. What a row builds says to which stage it belongs.
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
from lesionseg.space import Float, ComponentConfig, RegistryEntry, build

Chain = tuple[ComponentConfig, ...]
Probability = NDArray[np.float32]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

#: Where a chain does not say, a pixel is lesion from this probability on, exclusive.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Refinement:
    """First stage: probabilities [S, S] from probabilities and the image uint8 [S, S, 3]."""

    apply: Callable[[Probability, Image], Probability]


@dataclass(frozen=True)
class Threshold:
    """Second stage: what is strictly above the value is lesion."""

    value: float


@dataclass(frozen=True)
class Operation:
    """Third stage: a mask [H, W] from a mask."""

    apply: Callable[[Mask], Mask]


def build_threshold(value: float) -> Threshold:
    """Cuts at another probability than one half."""
    return Threshold(value)


def build_crf(weight: float, colour: float) -> Refinement:
    """Lets edges follow the image's colours; ``lesionseg.inference.crf``, arXiv:1210.5644."""
    return Refinement(partial(crf, weight=weight, colour=colour))


def build_largest() -> Operation:
    """Keeps the largest component, 8-connected; of equals, the first from the top left."""
    return Operation(_largest)


def build_fill_holes() -> Operation:
    """Fills background from which no path of 4-connected pixels leads to the border."""
    return Operation(_fill_holes)


def build_opening(radius: float) -> Operation:
    """Removes what a disc does not fit into; its radius is in percent of the diagonal."""
    return Operation(lambda mask: _dilated(_eroded(mask, radius), radius))


def build_closing(radius: float) -> Operation:
    """Fills what a disc does not fit into; its radius is in percent of the diagonal."""
    return Operation(lambda mask: _eroded(_dilated(mask, radius), radius))


POSTPROCESS: dict[str, RegistryEntry] = {
    "threshold": RegistryEntry(
        build_threshold, {"value": Float(0.05, 0.95, default=DEFAULT_THRESHOLD)}, "lesion above this probability"
    ),
    "largest": RegistryEntry(build_largest, {}, "the largest component only"),
    "fill_holes": RegistryEntry(build_fill_holes, {}, "no holes"),
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
    """The chain with every parameter of its rows written out.

    Raises:
        InputError: an unknown row or parameter, a value outside its domain, or more than one
            row of the first or second stage.
    """
    steps = [_build(component) for component in chain]
    for stage in (Threshold, Refinement):
        names = [component.name for component, step in zip(chain, steps, strict=True) if type(step) is stage]
        if len(names) > 1:
            raise InputError(
                f"postprocess: a chain has at most one {' or '.join(dict.fromkeys(names))}, "
                f"got {len(names)}; leave out all but one"
            )
    return tuple(ComponentConfig(p.name, POSTPROCESS[p.name].resolve(p.params)) for p in chain)


def refine_probability(chain: Chain, probability: Probability, image: Image) -> Probability:
    """The first stage, at the network's size.

    Args:
        chain: rows of POSTPROCESS; those of other stages change nothing here.
        probability: [S, S] in [0, 1].
        image: uint8 [S, S, 3], RGB.

    Returns:
        Probabilities [S, S] in [0, 1]; the same array where no row refines it.
    """
    for step in map(_build, chain):
        if isinstance(step, Refinement):
            probability = step.apply(probability, image)
    return probability


def to_mask(chain: Chain, probability: Probability, shape: tuple[int, int]) -> Mask:
    """The second and third stage: a mask [H, W] of that shape from ``refine``'s result.

    Probabilities are interpolated linearly and cut strictly above the chain's threshold, or
    above one half.
    """
    return probability_to_mask(chain, resize_probability(probability, shape))


def resize_probability(probability: Probability, shape: tuple[int, int]) -> Probability:
    """Probabilities [H, W] of that shape from [S, S], interpolated linearly."""
    full: Probability = np.asarray(
        cv2.resize(
            probability.astype(np.float32, copy=False), shape[::-1], interpolation=cv2.INTER_LINEAR
        ),
        np.float32,
    )
    return full


def probability_to_mask(chain: Chain, full: Probability) -> Mask:
    """The second and third stage from probabilities [H, W] that were enlarged already."""
    cuts = [step.value for step in map(_build, chain) if isinstance(step, Threshold)]
    mask: Mask = full > (cuts[0] if cuts else DEFAULT_THRESHOLD)
    return apply_operations(chain, mask)


def apply_operations(chain: Chain, mask: Mask) -> Mask:
    """The third stage alone, on a mask [H, W]."""
    for step in map(_build, chain):
        if isinstance(step, Operation):
            mask = step.apply(mask)
    return mask


def _build(component: ComponentConfig) -> Refinement | Threshold | Operation:
    step: Refinement | Threshold | Operation = build("postprocess", POSTPROCESS, component)
    return step


def _largest(mask: Mask) -> Mask:
    n, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if n < 2:
        return mask
    kept: Mask = labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
    return kept


def _fill_holes(mask: Mask) -> Mask:
    # Label by label, since SciPy's fills from the border pixel by pixel: seconds on a photograph.
    n, labels = cv2.connectedComponents((~mask).view(np.uint8), connectivity=4)
    outside = np.zeros(n, dtype=np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False  # the lesion's own label
    filled: Mask = ~outside[labels]
    return filled


# Discs by distance: time does not grow with the radius, as it does with an element's pixels.
# What lies beyond the border is neither lesion nor skin, so that full masks stay full.


def _eroded(mask: Mask, percent: float) -> Mask:
    if mask.all():
        return mask
    inside: Mask = _distance(mask) > _pixels(mask, percent)
    return inside


def _dilated(mask: Mask, percent: float) -> Mask:
    if not mask.any():
        return mask
    reached: Mask = _distance(~mask) <= _pixels(mask, percent)
    return reached


def _distance(mask: Mask) -> NDArray[np.float32]:
    """From each pixel to the nearest that is not in the mask."""
    distance: NDArray[np.float32] = np.asarray(
        cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32
    )
    return distance


def _pixels(mask: Mask, percent: float) -> float:
    return float(percent / 100 * np.hypot(*mask.shape))
