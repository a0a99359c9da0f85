"""Bootstrap intervals of means, paired differences and significance tests.

Whole groups are resampled. Images of one lesion are not independent; resampling single images
would make intervals too narrow (Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lesionseg.metrics.overlap import Floats


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a - b over images and its interval."""

    difference: float
    low: float
    high: float


def bootstrap_intervals(
    scores: Mapping[str, Floats],
    groups: Sequence[str],
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return percentile bootstrap intervals of the means over images.

    Args:
        scores: float64 [N] by name.
        groups: patient or lesion of each of the N images; whole groups are resampled.
        resamples: number of resamples.
        level: coverage of the interval, in (0, 1).
        seed: seed of the random generator; all names use the same resamples.

    Returns:
        (low, high) by name, in the order of ``scores``.
    """
    means = _resample_means(np.stack(list(scores.values())), groups, resamples, seed)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(scores)}


def paired_difference(
    a: Floats, b: Floats, groups: Sequence[str], *, resamples: int = 5000, seed: int = 0
) -> PairedDifference:
    """Return mean(a - b) over the same images with its interval; a and b differ if it excludes 0.

    Every resample applies to both a and b, which makes the interval narrower than the two of
    ``bootstrap_intervals`` suggest. The other arguments are those of that function.
    """
    intervals = bootstrap_intervals({"": a - b}, groups, resamples=resamples, seed=seed)
    return PairedDifference(float((a - b).mean()), *intervals[""])


def wilcoxon_p_value(a: Floats, b: Floats, groups: Sequence[str]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test on the groups' mean differences.

    Images of one group are not independent observations. Groups without a difference are ranked
    and then dropped (Pratt 1959). The p-value is 1 if no group differs.
    """
    _, group_index = np.unique(groups, return_inverse=True)
    means = np.bincount(group_index, weights=a - b) / np.bincount(group_index)
    if not means.any():
        return 1.0
    return float(stats.wilcoxon(means, zero_method="pratt").pvalue)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons by Holm's step-down method (1979).

    The k-th smallest of n is multiplied by n - k + 1; the results are monotone and at most 1.
    """
    n, order = len(p_values), np.argsort(p_values, kind="stable")
    adjusted = np.empty(n)
    scaled = np.asarray(p_values, np.float64)[order] * np.arange(n, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()


def _resample_means(values: Floats, groups: Sequence[str], resamples: int, seed: int) -> Floats:
    """Return the means over images of each resample: [names, N] -> [resamples, names]."""
    _, group_index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_index)
    sums = np.stack([np.bincount(group_index, weights=row) for row in values])
    n = len(sizes)
    indices = np.random.default_rng(seed).integers(n, size=(resamples, n))
    indices += n * np.arange(resamples)[:, None]
    # How often each group occurs in each resample.
    counts = np.bincount(indices.ravel(), minlength=resamples * n).reshape(resamples, n)
    weights = counts.astype(np.float64)
    means: Floats = weights @ sums.T / (weights @ sizes)[:, None]
    return means
