"""Precision-recall curves and calibration from histograms of predicted probabilities.

A test set has too many pixels to keep the probability of each. Each image is reduced to a
histogram of its background and lesion pixels over the probability. Histograms are normalised per
image before they are averaged, so that every image has the same weight. Bin k of n holds
k/n <= p < (k + 1)/n; the last bin includes p = 1. Curves and calibration take the float64 [2, bins]
of ``mean_histogram``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.metrics.overlap import Floats


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of the pixels at or above each threshold; float64 [bins] each.

    Thresholds rise from 0. Precision is 1 where no pixel reaches the threshold.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predicted probability against lesion frequency, per bin; float64 [bins] each.

    confidence: mean probability in the bin; the bin's centre if it holds no pixel.
    frequency: share of lesion pixels in the bin; NaN if it holds no pixel.
    share: share of all pixels in the bin; sums to 1.
    """

    confidence: Floats
    frequency: Floats
    share: Floats


def probability_histogram(
    probability: NDArray[np.floating], truth: NDArray[np.bool_], bins: int = 1000
) -> NDArray[np.int64]:
    """Count background and lesion pixels by probability.

    Args:
        probability: of lesion, floats [H, W] in [0, 1].
        truth: bool [H, W].
        bins: number of bins of equal width.

    Returns:
        int64 [2, bins]: row 0 background, row 1 lesion; the sum is H * W.

    Raises:
        ValueError: different shapes, or NaN.
    """
    # In float64: in float16 and float32 a product may be rounded up into the next bin.
    index = np.multiply(probability, bins, dtype=np.float64).astype(np.intp)
    np.minimum(index, bins - 1, out=index)
    index += bins * truth
    return np.bincount(index.ravel(), minlength=2 * bins).reshape(2, bins).astype(np.int64)


def mean_histogram(histograms: NDArray[np.int64]) -> Floats:
    """Return the mean over images of the normalised histograms.

    Args:
        histograms: int64 [N, 2, bins] of ``probability_histogram``.

    Returns:
        float64 [2, bins] with sum 1.

    Raises:
        ValueError: no image, or an image without pixels.
    """
    totals = histograms.sum(axis=tuple(range(1, histograms.ndim)))
    if not len(histograms) or not totals.all():
        raise ValueError("a mean over images needs at least one image, and pixels in each")
    shares: Floats = (histograms.T / totals).T.mean(axis=0)
    return shares


def precision_recall(histogram: Floats) -> Curve:
    """Return precision and recall at the thresholds 0, 1/bins, 2/bins, ...

    The values are exact: a pixel counts as lesion where p >= threshold, and each threshold is
    the lower edge of a bin. Without any lesion pixel recall is 1 everywhere, as in scikit-learn.
    """
    background, lesion = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
    positive = background + lesion
    bins = histogram.shape[1]
    return Curve(
        thresholds=np.arange(bins) / bins,
        precision=np.divide(lesion, positive, out=np.ones(bins), where=positive > 0),
        recall=lesion / lesion[0] if lesion[0] > 0 else np.ones(bins),
    )


def average_precision(histogram: Floats) -> float:
    """Return the area under the precision-recall steps, in [0, 1]; higher is better.

    The sum of (R_k - R_{k+1}) P_k over the bins, without interpolation: scikit-learn's
    ``average_precision_score`` of the binned probabilities, each pixel weighted by 1 / pixels of
    its image. 0 without any lesion pixel, as there.
    """
    curve, lesion = precision_recall(histogram), histogram[1]
    total = lesion.sum()
    return float(lesion @ curve.precision / total) if total > 0 else 0.0


def calibration(histogram: Floats, bins: int = 15) -> Calibration:
    """Return lesion frequency against predicted probability, in bins of equal width.

    A histogram bin is assigned to the bin that contains its centre, and its pixels count with
    the centre as their probability. Confidence is exact to half a histogram bin (0.0005 for 1000).
    """
    fine = histogram.shape[1]
    double_centres = 2 * np.arange(fine) + 1
    # In integers: the quotient in floats may fall into the neighbouring bin.
    index = double_centres * bins // (2 * fine)
    both: Floats = histogram[0] + histogram[1]
    share, predicted, lesion = (
        np.bincount(index, weights=weights, minlength=bins).astype(np.float64)
        for weights in (both, both * double_centres / (2 * fine), histogram[1])
    )
    occupied = share > 0
    centres = (np.arange(bins) + 0.5) / bins
    return Calibration(
        confidence=np.divide(predicted, share, out=centres, where=occupied),
        frequency=np.divide(lesion, share, out=np.full(bins, np.nan), where=occupied),
        share=share,
    )


def calibration_error(histogram: Floats, bins: int = 15) -> float:
    """Return the expected calibration error of the lesion probability, in [0, 1]; lower is better.

    The mean over pixels of |frequency - confidence| of their bin (Guo et al., arXiv:1706.04599,
    eq. 3). The paper bins the probability of the predicted class, from 0.5; here it is the
    probability of lesion, from 0.
    """
    table = calibration(histogram, bins)
    gap = np.abs(table.frequency - table.confidence)
    return float(np.sum(table.share * gap, where=table.share > 0))


def mean_confusion(counts: NDArray[np.int64]) -> dict[str, float]:
    """Return the shares of tp, fp, fn and tn, averaged over images; they sum to 1.

    Args:
        counts: int64 [N, 4] of ``overlap.count_pixels``.

    Raises:
        ValueError: no image, or an image without pixels.
    """
    return dict(zip(("tp", "fp", "fn", "tn"), mean_histogram(counts).tolist(), strict=True))
