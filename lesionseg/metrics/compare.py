"""How sure a mean is, and the difference of two: percentile intervals by the bootstrap.

Whole groups are drawn with replacement. Pictures of one lesion are not independent, so that
drawing single images would make an interval too narrow (Field and Welsh 2007,
doi:10.1111/j.1467-9868.2007.00593.x).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lesionseg.metrics.overlap import Floats

#: Numbers drawn at a time: a block of float64 of this many fits into 32 MB.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Paired:
    """The mean of a - b over images, and the interval it lies in."""

    difference: float
    low: float
    high: float


def bootstrap(
    scores: Mapping[str, Floats],
    groups: Sequence[str],
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means over images, drawing whole groups with replacement.

    Args:
        scores: float64 [N] of each name.
        groups: The patient or lesion of each of the N images.
        resamples: How often the groups are drawn.
        level: The share of resamples that the interval holds, above 0 and below 1.
        seed: Of the draws; the same draws serve all names.

    Returns:
        (low, high) of each name in ``scores``, in its order.

    Raises:
        ValueError: Scores that are not [N], no image, no resample, or a level outside (0, 1).
    """
    _check(scores, groups, resamples, level)
    if not scores:
        return {}
    means = _resampled(np.stack(list(scores.values())), groups, resamples, seed)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(scores)}


def paired(
    a: Floats,
    b: Floats,
    groups: Sequence[str],
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> Paired:
    """The interval of mean(a - b) over the same images; 0 outside it tells a from b.

    Each draw of groups serves both a and b. What makes an image hard for both falls out of the
    difference, so the interval is narrower than two of ``bootstrap`` would suggest.

    Args:
        a: float64 [N].
        b: float64 [N], of the same images in the same order.
        groups: As in ``bootstrap``, like the rest.
        resamples: As there.
        level: As there.
        seed: As there.

    Raises:
        ValueError: As there.
    """
    _check({"a": a, "b": b}, groups, resamples, level)
    difference = a - b
    interval = bootstrap(
        {"difference": difference}, groups, resamples=resamples, level=level, seed=seed
    )
    return Paired(float(difference.mean()), *interval["difference"])


def wilcoxon(a: Floats, b: Floats, groups: Sequence[str]) -> float:
    """The p-value of Wilcoxon's signed-rank test that a - b has no tendency; two-sided.

    Pictures of one group are no independent observations: the test is over the groups' mean
    differences. Groups without a difference are ranked and then dropped (Pratt 1959). Where no
    group differs, the p-value is 1.

    Args:
        a: float64 [N].
        b: float64 [N], of the same images in the same order.
        groups: The patient or lesion of each of the N images.

    Raises:
        ValueError: Scores that are not [N], or no image.
    """
    _check({"a": a, "b": b}, groups, resamples=1, level=0.5)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    means = np.bincount(member, weights=a - b) / np.bincount(member)
    if not means.any():
        return 1.0
    return float(stats.wilcoxon(means, zero_method="pratt").pvalue)


def holm(chances: Sequence[float]) -> list[float]:
    """P-values raised for their number, in their order, by Holm's step-down method (1979).

    Rejecting those below a level then errs in any of them with at most that probability. The k-th
    smallest of n is multiplied by n - k + 1; none falls below a smaller one, and none exceeds 1.

    Args:
        chances: In [0, 1]; none gives none.

    Raises:
        ValueError: One outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in chances):
        raise ValueError(f"p-values must lie in [0, 1], got {list(chances)}")
    raised = [0.0] * len(chances)
    most = 0.0
    for rank, i in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        most = max(most, min(1.0, (len(chances) - rank) * chances[i]))
        raised[i] = most
    return raised


def _resampled(values: Floats, groups: Sequence[str], resamples: int, seed: int) -> Floats:
    """The means over images of each resample: [names, N] -> [resamples, names]."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    sums = np.stack([np.bincount(member, weights=row) for row in values])
    return np.concatenate(
        [times @ sums.T / (times @ sizes)[:, None] for times in _draws(len(sizes), resamples, seed)]
    )


def _draws(groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each group comes in each resample: blocks of [some, groups].

    In blocks, because all of them at once may not fit into memory. The stream of draws, and so
    the result, does not depend on the size of a block.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // groups)
    for start in range(0, resamples, rows):
        n = min(rows, resamples - start)
        drawn = rng.integers(groups, size=(n, groups)) + groups * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * groups)
        yield times.reshape(n, groups).astype(np.float64)


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
