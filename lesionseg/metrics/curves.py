"""Precision and recall at every threshold, and calibration, from tallies of probabilities.

A test set has too many pixels to keep each one's probability. Each image is reduced to a tally:
how many pixels of skin and of lesion have a probability in each of many narrow bins. Tallies
become shares of their image before they are averaged, so that an image counts once, whatever its
size. Bin k of n holds k/n <= p < (k + 1)/n, and the last one p = 1 too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.metrics.overlap import Floats

#: The columns of ``overlap.count``.
_PARTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of the pixels at or above each threshold; float64 [bins] each.

    thresholds rise from 0, where everything counts as lesion. Where no pixel reaches the
    threshold, precision is 1: nothing was called lesion wrongly.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was foretold and what was so, by bins of probability; float64 [bins] each.

    confidence: the mean probability in the bin; the bin's middle where it holds no pixel.
    frequency: the share of lesion among the bin's pixels; NaN where it holds no pixel.
    share: the share of all pixels that the bin holds; they sum to 1.
    """

    confidence: Floats
    frequency: Floats
    share: Floats


def tally(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], bins: int = 1000
) -> NDArray[np.int64]:
    """How many pixels of skin and of lesion have a probability in each bin.

    Args:
        probability: Of lesion, floats [H, W] in [0, 1].
        truth: Bool, of the same shape.
        bins: Of equal width.

    Returns:
        int64 [2, bins]: row 0 skin, row 1 lesion. The sum is H * W.

    Raises:
        ValueError: The shapes differ, a probability is outside [0, 1] or NaN, the truth is not
            bool, or there is no bin.
    """
    _check(probability, truth, bins)
    # In float64, because in float16 and float32 a product may round up into the next bin.
    place = np.multiply(probability, bins, dtype=np.float64).astype(np.intp)
    np.minimum(place, bins - 1, out=place)
    place += bins * truth
    return np.bincount(place.ravel(), minlength=2 * bins).reshape(2, bins).astype(np.int64)


def pooled(tallies: NDArray[np.int64]) -> Floats:
    """The mean over images of each image's shares.

    Args:
        tallies: int64 [N, 2, bins], as ``tally`` gives them.

    Returns:
        float64 [2, bins] of sum 1.

    Raises:
        ValueError: Another shape, no image, or an image without pixels.
    """
    if tallies.ndim != 3 or tallies.shape[1] != 2:
        raise ValueError(f"tallies must be [N, 2, bins], got {tallies.shape}")
    return _mean_shares(tallies)


def precision_recall(pooled: Floats) -> Curve:
    """Precision and recall at the thresholds 0, 1/bins, 2/bins and so on.

    They are exact: a pixel of probability p counts as lesion where p >= threshold, and each
    threshold is the lower edge of a bin. Without any lesion recall is 1 everywhere, as in
    scikit-learn: no lesion was missed.

    Args:
        pooled: float64 [2, bins] from ``pooled``.
    """
    skin, lesion = _from_above(_checked(pooled))
    called = skin + lesion
    bins = pooled.shape[1]
    return Curve(
        thresholds=np.arange(bins) / bins,
        precision=np.divide(lesion, called, out=np.ones(bins), where=called > 0),
        recall=lesion / lesion[0] if lesion[0] > 0 else np.ones(bins),
    )


def average_precision(pooled: Floats) -> float:
    """The area under the steps of precision over recall, in [0, 1]; higher is better.

    Each step of recall counts at the precision reached with it, without interpolation: the sum
    of (R_k - R_{k+1}) P_k over the bins. It is what scikit-learn's ``average_precision_score``
    gives for the binned probabilities when each pixel weighs 1 / the pixels of its image. Without
    any lesion it is 0, as there: no precision above 0 was reached at any threshold.

    Args:
        pooled: float64 [2, bins] from ``pooled``.
    """
    curve, lesion = precision_recall(pooled), pooled[1]
    everything = lesion.sum()
    return float(lesion @ curve.precision / everything) if everything > 0 else 0.0


def calibration(pooled: Floats, bins: int = 15) -> Calibration:
    """Lesion probability against lesion frequency, in bins of equal width.

    A tally's bin belongs to the bin that holds its middle, and its pixels count as having that
    middle as probability. So confidence is right to half a tally bin: 0.0005 of 1000 bins.

    Args:
        pooled: float64 [2, fine] from ``pooled``.
        bins: How many, from 1 to as many as the tally has.

    Raises:
        ValueError: Another number of bins.
    """
    fine = _checked(pooled).shape[1]
    if not 1 <= bins <= fine:
        raise ValueError(f"bins must be from 1 to the tally's {fine}, got {bins}")
    double = 2 * np.arange(fine) + 1
    # In whole numbers: the float quotient of a middle may fall into the bin beside it.
    home = double * bins // (2 * fine)
    both: Floats = pooled[0] + pooled[1]
    share, foretold, lesion = (
        np.bincount(home, weights=weights, minlength=bins).astype(np.float64)
        for weights in (both, both * double / (2 * fine), pooled[1])
    )
    held = share > 0
    middle = (np.arange(bins) + 0.5) / bins
    return Calibration(
        confidence=np.divide(foretold, share, out=middle, where=held),
        frequency=np.divide(lesion, share, out=np.full(bins, np.nan), where=held),
        share=share,
    )


def calibration_error(pooled: Floats, bins: int = 15) -> float:
    """The expected calibration error of the lesion's probability, in [0, 1]; lower is better.

    The mean over pixels of |frequency - confidence| of their bin (Guo et al., arXiv:1706.04599,
    eq. 3). There the confidence is that of the class chosen, from 0.5 up; here it is the
    lesion's, from 0 up, because the probability of lesion is what a reader sees.

    Args:
        pooled: float64 [2, fine] from ``pooled``.
        bins: As in ``calibration``.
    """
    table = calibration(pooled, bins)
    gap = np.abs(table.frequency - table.confidence)
    return float(np.sum(table.share * gap, where=table.share > 0))


def confusion(counts: NDArray[np.int64]) -> dict[str, float]:
    """The shares of tp, fp, fn and tn, meant over images; they sum to 1.

    Args:
        counts: int64 [N, 4] from ``overlap.count``.

    Raises:
        ValueError: Another shape, no image, or an image without pixels.
    """
    if counts.ndim != 2 or counts.shape[1] != len(_PARTS):
        raise ValueError(f"counts must be [N, 4], got {counts.shape}")
    return dict(zip(_PARTS, _mean_shares(counts).tolist(), strict=True))


def _mean_shares(pixels: NDArray[np.int64]) -> Floats:
    """Each image of [N, ...] divided by its sum, then the mean of them."""
    totals = pixels.sum(axis=tuple(range(1, pixels.ndim)))
    if not len(pixels) or not totals.all():
        raise ValueError("a mean over images needs at least one image, and pixels in each")
    shares: Floats = (pixels.T / totals).T.mean(axis=0)
    return shares


def _from_above(pooled: Floats) -> Floats:
    """What lies in each bin and all above it."""
    return np.cumsum(pooled[:, ::-1], axis=1)[:, ::-1]


def _checked(pooled: Floats) -> Floats:
    if pooled.ndim != 2 or len(pooled) != 2:
        raise ValueError(f"pooled tallies must be [2, bins], got {pooled.shape}")
    return pooled


def _check(probability: NDArray[np.floating], truth: NDArray[np.bool_], bins: int) -> None:
    if probability.shape != truth.shape:
        raise ValueError(
            f"probability and mask must have one shape, got {probability.shape} and {truth.shape}"
        )
    if truth.dtype != np.bool_:
        raise ValueError(f"the mask must be bool, got {truth.dtype}")
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    # Asked so that NaN fails too.
    if not (probability.size == 0 or (probability.min() >= 0 and probability.max() <= 1)):
        raise ValueError(
            f"probabilities must lie in [0, 1], got {probability.min()} to {probability.max()}"
        )
