"""Bootstrap intervals of means, paired differences and significance tests.

Whole groups are resampled. Images of one lesion are not independent; resampling single images
would make intervals too narrow (Field and Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lesionseg.metrics.overlap import Floats

#: Random numbers per block: float64 of this many fit into 32 MB.
_BLOCK_SIZE = 1 << 22


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

    Raises:
        ValueError: scores that are not [N], no image, no resample, or a level outside (0, 1).
    """
    _check(scores, groups, resamples, level)
    if not scores:
        return {}
    means = _resample_means(np.stack(list(scores.values())), groups, resamples, seed)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(scores)}


def paired_difference(
    a: Floats,
    b: Floats,
    groups: Sequence[str],
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Return mean(a - b) over the same images with its interval; a and b differ if it excludes 0.

    Every resample applies to both a and b, which makes the interval narrower than the two of
    ``bootstrap_intervals`` suggest.

    Args:
        a: float64 [N].
        b: float64 [N], of the same images in the same order.
        groups: as in ``bootstrap_intervals``.
        resamples: as in ``bootstrap_intervals``.
        level: as in ``bootstrap_intervals``.
        seed: as in ``bootstrap_intervals``.

    Raises:
        ValueError: as in ``bootstrap_intervals``.
    """
    _check({"a": a, "b": b}, groups, resamples, level)
    difference = a - b
    interval = bootstrap_intervals(
        {"difference": difference}, groups, resamples=resamples, level=level, seed=seed
    )
    return PairedDifference(float(difference.mean()), *interval["difference"])


def wilcoxon_p_value(a: Floats, b: Floats, groups: Sequence[str]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test on the groups' mean differences.

    Images of one group are not independent observations. Groups without a difference are ranked
    and then dropped (Pratt 1959). The p-value is 1 if no group differs.

    Args:
        a: float64 [N].
        b: float64 [N], of the same images in the same order.
        groups: patient or lesion of each of the N images.

    Raises:
        ValueError: scores that are not [N], or no image.
    """
    _check({"a": a, "b": b}, groups, resamples=1, level=0.5)
    _, group_index = np.unique(np.asarray(groups), return_inverse=True)
    means = np.bincount(group_index, weights=a - b) / np.bincount(group_index)
    if not means.any():
        return 1.0
    return float(stats.wilcoxon(means, zero_method="pratt").pvalue)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons by Holm's step-down method (1979).

    The k-th smallest of n is multiplied by n - k + 1; the results are monotone and at most 1.

    Args:
        p_values: each in [0, 1]; may be empty.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _resample_means(values: Floats, groups: Sequence[str], resamples: int, seed: int) -> Floats:
    """Return the means over images of each resample: [names, N] -> [resamples, names]."""
    _, group_index = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(group_index)
    sums = np.stack([np.bincount(group_index, weights=row) for row in values])
    return np.concatenate(
        [
            weights @ sums.T / (weights @ sizes)[:, None]
            for weights in _draw_weights(len(sizes), resamples, seed)
        ]
    )


def _draw_weights(groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks [rows, groups]: how often each group occurs in each resample.

    All resamples at once may not fit into memory. The result does not depend on the block size.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK_SIZE // groups)
    for start in range(0, resamples, rows):
        n = min(rows, resamples - start)
        indices = rng.integers(groups, size=(n, groups)) + groups * np.arange(n)[:, None]
        weights = np.bincount(indices.ravel(), minlength=n * groups)
        yield weights.reshape(n, groups).astype(np.float64)


def _check(
    scores: Mapping[str, Floats], groups: Sequence[str], resamples: int, level: float
) -> None:
    if not len(groups):
        raise ValueError("an interval needs at least one image, got none")
    for name, values in scores.items():
        if np.shape(values) != (len(groups),):
            raise ValueError(
                f"{name} must have one value per image: the groups are of {len(groups)} images, "
                f"got shape {np.shape(values)}"
            )
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
