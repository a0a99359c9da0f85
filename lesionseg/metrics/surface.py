"""Distances between the boundary of a prediction and that of the truth, by MONAI.

The boundary of a mask is MONAI's: the mask's own pixels of which one of the four neighbours is
skin; outside the image all is skin, so that a lesion cut off by the image's border has a boundary
there. Distances are Euclidean, between the centres of pixels.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

#: The names of the distances, in order; lower is better.
SURFACE: tuple[str, ...] = ("assd", "hd", "hd95")

#: Pixels of skin kept around both masks: one row in which their boundaries end.
_MARGIN = 1

#: No caller can mend it.
_DEPRECATED = "(?s).*always_return_as_numpy"

Mask = NDArray[np.bool_]


def surface(predicted: Mask, truth: Mask) -> dict[str, float]:
    """The distances between the boundaries of two masks, in pixels of the masks' own size.

    - ``assd``, the average symmetric surface distance: each boundary pixel's distance to the
      nearest of the other boundary, averaged over the pixels of both boundaries pooled. It is
      not the mean of two means; the longer boundary weighs more.
    - ``hd``, the Hausdorff distance: the largest of all these distances.
    - ``hd95``: the larger of the two directions' 95th percentiles (linear between points).

    Two empty masks agree: 0. If only one is empty, there is no distance, and each counts the
    image's diagonal. That is worse than any distance within the image. A mean over images must
    stay finite, and an image left out of it would make a missed lesion cost nothing.

    Args:
        predicted: Bool, [H, W].
        truth: Bool, of the same shape.

    Returns:
        The distances by their names in SURFACE, each in [0, ``diagonal(truth.shape)``].

    Raises:
        ValueError: The masks are not bool, not [H, W] or not of one shape.
    """
    _check(predicted, truth)
    found, present = bool(predicted.any()), bool(truth.any())
    if not (found and present):
        missed = diagonal(truth.shape) if found or present else 0.0
        return dict.fromkeys(SURFACE, missed)
    return _distances(*crop(predicted, truth))


def diagonal(shape: tuple[int, ...]) -> float:
    """The diagonal of an image of the shape (H, W), in pixels.

    It runs from corner to corner, not between the centres of the pixels there: so it is larger
    than any distance of two pixels, and above 0 in an image of one pixel.
    """
    height, width = shape
    return math.hypot(height, width)


def percent(value: float, shape: tuple[int, ...]) -> float:
    """A distance in pixels as a share of the diagonal of (H, W), in [0, 100].

    Images of one lesion at two resolutions have about the same; their pixels cannot be compared.
    """
    return 100 * (value / diagonal(shape))


def crop(predicted: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Both masks [H, W] within the box that holds both and a margin, where the image has one.

    No distance changes by it: only pixels of skin are left out, and outside counts as skin.
    One of the masks must have a pixel.
    """
    either = predicted | truth
    box = tuple(_extent(np.any(either, axis=axis)) for axis in (1, 0))
    return predicted[box], truth[box]


def _extent(occupied: Mask) -> slice:
    """From the first True to the last, and the margin."""
    places = np.flatnonzero(occupied)
    return slice(max(int(places[0]) - _MARGIN, 0), int(places[-1]) + 1 + _MARGIN)


def _distances(predicted: Mask, truth: Mask) -> dict[str, float]:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    # MONAI takes a batch of channels, and would leave the first channel out as background.
    p, t = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (predicted, truth))
    _hush()
    distances = (
        compute_average_surface_distance(p, t, include_background=True, symmetric=True),
        compute_hausdorff_distance(p, t, include_background=True),
        compute_hausdorff_distance(p, t, include_background=True, percentile=95),
    )
    return {name: float(d) for name, d in zip(SURFACE, distances, strict=True)}


def _hush() -> None:
    """Silences what MONAI 1.6 says of an argument that it passes to itself.

    For the whole process and for good: a filter that is put back afterwards belongs to all
    threads, and one that ends would take it from the others.
    """
    if not any(kept[1] is not None and kept[1].pattern == _DEPRECATED for kept in warnings.filters):
        warnings.filterwarnings("ignore", _DEPRECATED, FutureWarning)


def _check(predicted: Mask, truth: Mask) -> None:
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(
            f"prediction and mask must have one shape [H, W], got {predicted.shape} "
            f"and {truth.shape}"
        )
    if predicted.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(
            f"prediction and mask must be bool, got {predicted.dtype} and {truth.dtype}"
        )
