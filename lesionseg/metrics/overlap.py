"""Overlap metrics: pixel counts per image, scores per image, means over images.

Pixels of several images are never pooled: every image has the same weight, as in the ISIC
challenges (arXiv:1902.03368).

Empty masks: a ratio 0/0 is 1 if the prediction is right and 0 otherwise. For a mask without
lesion an empty prediction scores 1 everywhere, and one false pixel makes Dice, Jaccard, precision
and recall 0. The same holds for specificity and a mask without background.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

#: ``thresholded_jaccard`` of an image with a lower Jaccard index is 0; ISIC 2018, arXiv:1902.03368.
JACCARD_THRESHOLD = 0.65


@dataclass(frozen=True)
class Metrics:
    """Means over images, each in [0, 1]; higher is better.

    ``volume_similarity`` compares the areas only: 1 - |fn - fp| / (2 tp + fp + fn). It is 1 for
    a lesion of the right size in the wrong place (Taha and Hanbury 2015,
    doi:10.1186/s12880-015-0068-x).
    """

    dice: float
    jaccard: float
    thresholded_jaccard: float
    precision: float
    recall: float
    specificity: float
    accuracy: float
    volume_similarity: float


#: The names of the metrics, in order.
METRICS: tuple[str, ...] = tuple(f.name for f in fields(Metrics))


def count_pixels(predicted: Tensor, truth: Tensor) -> Tensor:
    """Count the true positives, false positives, false negatives and true negatives per image.

    Args:
        predicted: bool [N, ...].
        truth: bool [N, ...].

    Returns:
        int64 [N, 4] on the same device, computed without synchronisation.

    Raises:
        ValueError: different shapes.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"the shapes {predicted.shape} and {truth.shape} must be equal")
    p, t = predicted.flatten(1), truth.flatten(1)
    parts = (p & t, p & ~t, ~p & t, ~p & ~t)
    return torch.stack([part.sum(1) for part in parts], dim=1)


def score_images(counts: NDArray[np.int64]) -> dict[str, Floats]:
    """Return the scores of each image by the names in METRICS.

    Args:
        counts: int64 [N, 4] of ``count_pixels``.

    Returns:
        float64 [N] each, in [0, 1].
    """
    tp, fp, fn, tn = (counts[:, i].astype(np.float64) for i in range(4))
    # 1 where neither the mask nor the prediction contains the class, else 0.
    no_lesion, no_background = (((n + fp + fn) == 0).astype(np.float64) for n in (tp, tn))
    areas = 2 * tp + fp + fn
    jaccard = _ratio(tp, tp + fp + fn, no_lesion)
    return {
        "dice": _ratio(2 * tp, areas, no_lesion),
        "jaccard": jaccard,
        "thresholded_jaccard": np.where(jaccard >= JACCARD_THRESHOLD, jaccard, 0.0),
        "precision": _ratio(tp, tp + fp, no_lesion),
        "recall": _ratio(tp, tp + fn, no_lesion),
        "specificity": _ratio(tn, tn + fp, no_background),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "volume_similarity": _ratio(areas - np.abs(fn - fp), areas, no_lesion),
    }


def mean_scores(scores: dict[str, Floats]) -> Metrics:
    """Return the means over images of float64 [N] each; ValueError if there is no image."""
    if not len(scores["dice"]):
        raise ValueError("a mean over images needs at least one image, got none")
    return Metrics(**{name: float(scores[name].mean()) for name in METRICS})


def dice_score(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks of one shape; 1 if both are empty."""
    # With NumPy, which is much faster on the CPU than ``count_pixels``.
    areas = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(predicted & truth) / areas) if areas else 1.0


def _ratio(part: Floats, whole: Floats, if_zero: Floats) -> Floats:
    return np.divide(part, whole, out=if_zero.copy(), where=whole > 0)
