"""Charts of the final test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from search.results.charts import svg

#: Ratio of the largest to the smallest size from which on the axis is logarithmic.
LOG_AXIS_RATIO = 8.0


@svg.svg_chart(svg.HALF_WIDTH)
def dice_chart(figure: Figure, dice: Sequence[float]) -> str:
    """Plot a histogram of the Dice of the test images."""
    low = min(math.floor(min(dice) * 20) / 20, 0.95)
    median = float(np.median(dice))
    axes = svg.add_axes(figure, "Dice of the image", "test images")
    axes.hist(dice, np.linspace(low, 1, 21).tolist(), color=svg.BLUE, rwidth=0.88)
    axes.axvline(median, color=svg.VERMILION, lw=1.6, label=f"median {median:.4f}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlim(low, 1)
    svg.add_legend(axes, columns=1)
    return (
        f"Histogram of Dice over {len(dice)} test images: median {median:.4f}, "
        f"lowest {min(dice):.4f}, highest {max(dice):.4f}."
    )


@svg.svg_chart(svg.HALF_WIDTH)
def recall_chart(
    figure: Figure, curves: Mapping[str, Sequence[float]], average_precision: float
) -> str:
    """Plot the precision-recall curve of the pixels."""
    half = int(np.argmin(np.abs(np.subtract(curves["thresholds"], 0.5))))
    recall, precision = curves["recall"][half], curves["precision"][half]
    axes = svg.add_axes(figure, "recall", "precision")
    axes.plot(curves["recall"], curves["precision"], color=svg.BLUE)
    axes.plot(recall, precision, "o", color=svg.VERMILION, ms=4.5, label="threshold 0.5")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    svg.add_legend(axes, columns=1)
    return (
        f"Precision over recall: area {average_precision:.4f}, recall {recall:.4f} and precision "
        f"{precision:.4f} at threshold 0.5."
    )


@svg.svg_chart(svg.HALF_WIDTH)
def calibration_chart(
    figure: Figure, curves: Mapping[str, Sequence[float | None]], error: float
) -> str:
    """Plot the share of lesion by predicted probability, without empty bins.

    The area of a dot grows with the bin's share of the pixels.
    """
    columns = zip(curves["confidence"], curves["frequency"], curves["share"], strict=True)
    bins = np.array([row for row in columns if None not in row], np.float64).reshape(-1, 3)
    confidence, frequency, shares = bins.T
    axes = svg.add_axes(figure, "predicted probability of lesion", "share of lesion")
    axes.plot([0, 1], [0, 1], "--", color=svg.MUTED, lw=0.8, label="perfect")
    axes.plot(confidence, frequency, color=svg.BLUE, lw=1)
    axes.scatter(confidence, frequency, 8 + 60 * shares, color=svg.BLUE, label="network", zorder=3)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    svg.add_legend(axes, columns=2)
    return f"Share of lesion over predicted probability in {len(bins)} bins: error {error:.4f}."


@svg.svg_chart(svg.HALF_WIDTH)
def size_chart(figure: Figure, shares: Sequence[float], dice: Sequence[float]) -> str:
    """Plot the Dice of the test images by the lesion's share of the image, in (0, 1]."""
    points = [(100 * share, d) for share, d in zip(shares, dice, strict=True) if share > 0]
    sizes = [size for size, _ in points]
    axes = svg.add_axes(figure, "lesion's share of the image, percent", "Dice of the image")
    svg.plot_points(axes, points, "o", color=svg.BLUE, ms=2.8, mew=0, alpha=0.6)
    if points and max(sizes) >= LOG_AXIS_RATIO * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    lowest = min((d for _, d in points), default=0.0)
    axes.set_ylim(min(0.95, math.floor(lowest * 20) / 20), 1.01)
    empty = len(shares) - len(points)
    excluded = f"; {empty} without lesion are not shown" if empty else ""
    return f"Dice over lesion size of {len(points)} test images{excluded}."
