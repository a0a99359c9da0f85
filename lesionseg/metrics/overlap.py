"""Counts per image -> scores per image -> Metrics, their means over images.

Nothing is ever pooled over the pixels of several images: an image counts once, whatever its
size, as in the ISIC challenges (arXiv:1902.03368).

Empty masks. A ratio 0/0 counts 1 when the prediction agrees with the mask on what is missing,
and 0 otherwise. So for a mask without lesion, an empty prediction scores 1 everywhere, and one
false pixel makes Dice, Jaccard, precision and recall 0; for a mask without background the same
holds of specificity.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

#: An image of a lower Jaccard index counts 0; ISIC 2018, arXiv:1902.03368.
JACCARD_THRESHOLD = 0.65


@dataclass(frozen=True)
class Metrics:
    """Means over images, each in [0, 1]; higher is better.

    ``volume_similarity`` compares the two areas alone, wherever they lie: 1 - |fn - fp| /
    (2 tp + fp + fn). It is 1 for a lesion of the right size in the wrong place, so read it
    beside the others (Taha and Hanbury 2015, doi:10.1186/s12880-015-0068-x).
    """

    dice: float
    jaccard: float
    thresholded_jaccard: float
    precision: float
    recall: float
    specificity: float
    accuracy: float
    volume_similarity: float


#: Their names, in order.
METRICS: tuple[str, ...] = tuple(f.name for f in fields(Metrics))


def count(predicted: Tensor, truth: Tensor) -> Tensor:
    """True positives, false positives, false negatives and true negatives of each image.

    Args:
        predicted: Bool, [N, ...].
        truth: Bool, of the same shape.

    Returns:
        int64 [N, 4], on their device and without waiting for it.

    Raises:
        ValueError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"prediction and mask must have one shape, got {tuple(predicted.shape)} "
            f"and {tuple(truth.shape)}"
        )
    p, t = predicted.flatten(1), truth.flatten(1)
    parts = (p & t, p & ~t, ~p & t, ~p & ~t)
    return torch.stack([part.sum(1) for part in parts], dim=1)


def score(counts: NDArray[np.int64]) -> dict[str, Floats]:
    """The scores of each image, by their names in METRICS.

    Args:
        counts: [N, 4] as ``count`` gives them.

    Returns:
        float64 [N] each, in [0, 1].
    """
    tp, fp, fn, tn = (counts[:, i].astype(np.float64) for i in range(4))
    no_lesion = _agree(tp, fp, fn)
    no_skin = _agree(tn, fp, fn)
    both = 2 * tp + fp + fn
    jaccard = _ratio(tp, tp + fp + fn, no_lesion)
    return {
        "dice": _ratio(2 * tp, both, no_lesion),
        "jaccard": jaccard,
        "thresholded_jaccard": np.where(jaccard >= JACCARD_THRESHOLD, jaccard, 0.0),
        "precision": _ratio(tp, tp + fp, no_lesion),
        "recall": _ratio(tp, tp + fn, no_lesion),
        "specificity": _ratio(tn, tn + fp, no_skin),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
        "volume_similarity": _ratio(both - np.abs(fn - fp), both, no_lesion),
    }


def mean(scores: dict[str, Floats]) -> Metrics:
    """The means over images; ValueError without any image."""
    if not len(scores["dice"]):
        raise ValueError("a mean over images needs at least one image, got none")
    return Metrics(**{name: float(scores[name].mean()) for name in METRICS})


def _agree(hits: Floats, fp: Floats, fn: Floats) -> Floats:
    """1 where neither the mask nor the prediction has any of it, else 0."""
    empty: Floats = ((hits + fp + fn) == 0).astype(np.float64)
    return empty


def _ratio(part: Floats, whole: Floats, otherwise: Floats) -> Floats:
    return np.divide(part, whole, out=otherwise.copy(), where=whole > 0)
