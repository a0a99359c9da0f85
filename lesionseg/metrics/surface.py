"""Surface distances between a predicted and a true mask, computed by MONAI.

The boundary of a mask consists of its pixels with a background pixel among the four neighbours;
outside the image is background, so that a lesion that is cut off by the image border has a
boundary there. Distances are Euclidean, between pixel centres.
"""

from __future__ import annotations

import math
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray

#: The names of the distances, in order; lower is better.
SURFACE_DISTANCES: tuple[str, ...] = ("assd", "hd", "hd95")

Mask = NDArray[np.bool_]


def surface_distances(predicted: Mask, truth: Mask) -> dict[str, float]:
    """Return the distances between the boundaries of two masks, in pixels.

    - ``assd``, average symmetric surface distance: the distance of each boundary pixel to the
      other boundary, averaged over the pixels of both boundaries together. It is not the mean
      of two means; the longer boundary has more weight.
    - ``hd``, Hausdorff distance: the largest of these distances.
    - ``hd95``: the larger of the 95th percentiles of the two directions (linear interpolation).

    0 for two empty masks. If one mask is empty, every distance is the image's diagonal, which is
    more than any distance within the image: means stay finite and missed lesions are penalised.

    Args:
        predicted: bool [H, W].
        truth: bool [H, W].

    Returns:
        The distances by the names in SURFACE_DISTANCES, from 0 to the diagonal.
    """
    in_prediction, in_truth = bool(predicted.any()), bool(truth.any())
    if not (in_prediction and in_truth):
        value = math.hypot(*truth.shape) if in_prediction or in_truth else 0.0
        return dict.fromkeys(SURFACE_DISTANCES, value)
    return _distances(*crop(predicted, truth))


def percent_of_diagonal(value: float, shape: tuple[int, ...]) -> float:
    """Return a distance in pixels as percent of the diagonal of (H, W), in [0, 100].

    The diagonal is between the outer corners. The result does not depend on the image's resolution.
    """
    return 100 * (value / math.hypot(*shape))


def crop(predicted: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Crop both masks [H, W] to their common bounding box and a margin of one pixel.

    Distances do not change: the margin is a row in which the boundaries end. MONAI crops too, but
    takes five times as long for a small lesion on a photograph.
    """
    x, y, width, height = cv2.boundingRect((predicted | truth).view(np.uint8))
    box = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
    return predicted[box], truth[box]


def _distances(predicted: Mask, truth: Mask) -> dict[str, float]:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_distance import compute_average_surface_distance

    # MONAI takes a batch of channels; by default it omits the first channel as background.
    p, t = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (predicted, truth))
    # A deprecation warning of MONAI 1.6 about an argument that it passes to itself. Ignored in the
    # whole process: restoring the filters in one thread would change those of the others.
    warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)
    distances = (
        compute_average_surface_distance(p, t, include_background=True, symmetric=True),
        compute_hausdorff_distance(p, t, include_background=True),
        compute_hausdorff_distance(p, t, include_background=True, percentile=95),
    )
    return {name: float(d) for name, d in zip(SURFACE_DISTANCES, distances, strict=True)}
