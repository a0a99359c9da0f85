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
    """Means over images, each in [0, 1]; higher is better."""

    dice: float
    jaccard: float
    thresholded_jaccard: float
    precision: float
    recall: float
    specificity: float
    accuracy: float


#: Their names, in order.
METRICS: tuple[str, ...] = tuple(f.name for f in fields(Metrics))


def count(predicted: Tensor, truth: Tensor) -> Tensor:
    """True positives, false positives, false negatives and true negatives of each image.

    predicted, truth: bool, [N, ...] of one shape. Returns int64 [N, 4], on their device and
    without waiting for it.
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

    counts: [N, 4] as ``count`` gives them. Returns float64 [N] each.
    """
    tp, fp, fn, tn = (counts[:, i].astype(np.float64) for i in range(4))
    no_lesion = _agree(tp, fp, fn)
    no_skin = _agree(tn, fp, fn)
    jaccard = _ratio(tp, tp + fp + fn, no_lesion)
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn, no_lesion),
        "jaccard": jaccard,
        "thresholded_jaccard": np.where(jaccard >= JACCARD_THRESHOLD, jaccard, 0.0),
        "precision": _ratio(tp, tp + fp, no_lesion),
        "recall": _ratio(tp, tp + fn, no_lesion),
        "specificity": _ratio(tn, tn + fp, no_skin),
        "accuracy": (tp + tn) / (tp + fp + fn + tn),
    }


def mean(scores: dict[str, Floats]) -> Metrics:
    """The means over images; ValueError without any image."""
    if not len(scores["dice"]):
        raise ValueError("a mean over images needs at least one image, got none")
    return Metrics(**{name: float(scores[name].mean()) for name in METRICS})


def bootstrap(
    scores: dict[str, Floats],
    groups: list[str],
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means, drawing whole groups with replacement.

    groups: the patient or lesion of each of the N images; pictures of one lesion are not
    independent, so that drawing single images would make the interval too narrow (Field and
    Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(member.max()) + 1
    sizes = np.bincount(member)
    sums = np.stack([np.bincount(member, weights=scores[name]) for name in METRICS])
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(METRICS)))
    for i in range(resamples):
        times = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        means[i] = sums @ times / (sizes @ times)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return {m: (float(low[i]), float(high[i])) for i, m in enumerate(METRICS)}


def _agree(hits: Floats, fp: Floats, fn: Floats) -> Floats:
    """1 where neither the mask nor the prediction has any of it, else 0."""
    empty: Floats = ((hits + fp + fn) == 0).astype(np.float64)
    return empty


def _ratio(part: Floats, whole: Floats, otherwise: Floats) -> Floats:
    return np.divide(part, whole, out=otherwise.copy(), where=whole > 0)
