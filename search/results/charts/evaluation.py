"""Charts of the final test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from search.results.charts.svg import (
    BLUE,
    CELL,
    HALF,
    INK,
    MUTED,
    VERMILION,
    draw,
    legend,
    panel,
)

#: From this ratio on, sizes are told apart on a logarithmic axis only.
WIDELY = 8.0


def confusion_chart(shares: Mapping[str, float]) -> Markup:
    """The four shares of pixels (tp, fp, fn, tn; they add up to 1), with per cent of each row."""
    rows = (("lesion", shares["tp"], shares["fn"]), ("skin", shares["fp"], shares["tn"]))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for y, (_, *cells) in enumerate(rows):
            for x, share in enumerate(cells):
                _cell(axes, x, y, share, share / sum(cells) if sum(cells) else 0.0)
        axes.set(xlim=(0, 2), ylim=(2, 0))
        axes.set_xticks([0.5, 1.5], ["lesion", "skin"])
        axes.set_yticks([0.5, 1.5], ["lesion", "skin"], rotation=90, va="center")
        axes.set(xlabel="predicted", ylabel="true")
        axes.xaxis.set_label_position("top")
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=INK)
        axes.spines[:].set_visible(False)

    told = (
        f"true {name}: predicted lesion {100 * a:.2f}%, predicted skin {100 * b:.2f}% of pixels"
        for name, a, b in rows
    )
    return draw("confusion", f"Confusion matrix; {'; '.join(told)}.", HALF, paint)


def dice_chart(values: Sequence[float]) -> Markup:
    """How many test images have which Dice."""
    low = min(math.floor(min(values) * 20) / 20, 0.95)
    median = float(np.median(values))

    def paint(figure: Figure) -> None:
        axes = panel(figure, "Dice of the image", "test images")
        axes.hist(values, np.linspace(low, 1, 21).tolist(), color=BLUE, rwidth=0.88)
        axes.axvline(median, color=VERMILION, lw=1.6, label=f"median {median:.4f}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_xlim(low, 1)
        legend(axes, columns=1)

    alt = f"Histogram of Dice over {len(values)} test images: median {median:.4f}"
    return draw("dice", f"{alt}, lowest {min(values):.4f}, highest {max(values):.4f}.", HALF, paint)


def recall_chart(curves: Mapping[str, Sequence[float]], area: float) -> Markup:
    """Precision over recall of the pixels, from thresholds 0 to 1. area: the average precision."""
    points = list(zip(curves["recall"], curves["precision"], strict=True))
    half = min(range(len(points)), key=lambda i: abs(curves["thresholds"][i] - 0.5), default=None)

    def paint(figure: Figure) -> None:
        axes = panel(figure, "recall", "precision")
        axes.plot(curves["recall"], curves["precision"], color=BLUE)
        if half is not None:
            axes.plot(*points[half], "o", color=VERMILION, ms=4.5, label="threshold 0.5")
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
        legend(axes, columns=1)

    at = (
        ""
        if half is None
        else f", recall {points[half][0]:.4f} and precision {points[half][1]:.4f} at threshold 0.5"
    )
    return draw("recall", f"Precision over recall: area {area:.4f}{at}.", HALF, paint)


def calibration_chart(curves: Mapping[str, Sequence[float | None]], error: float) -> Markup:
    """How often a pixel of a predicted probability is lesion; the diagonal would be perfect.

    A bin without pixels (a null frequency) is left out. A dot's area grows with its share.
    """
    bins = [
        (x, y, share)
        for x, y, share in zip(
            curves["confidence"], curves["frequency"], curves["share"], strict=True
        )
        if x is not None and y is not None and share is not None
    ]

    def paint(figure: Figure) -> None:
        axes = panel(figure, "predicted probability of lesion", "share that is lesion")
        axes.plot([0, 1], [0, 1], "--", color=MUTED, lw=0.8, label="perfect")
        x, y = [b[0] for b in bins], [b[1] for b in bins]
        axes.plot(x, y, color=BLUE, lw=1)
        axes.scatter(x, y, [8 + 60 * b[2] for b in bins], color=BLUE, label="network", zorder=3)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        legend(axes, columns=2)

    alt = f"Share of lesion over predicted probability in {len(bins)} bins: error {error:.4f}."
    return draw("calibration", alt, HALF, paint)


def size_chart(shares: Sequence[float], dice: Sequence[float]) -> Markup:
    """Dice of each test image over the lesion's share of it, in (0, 1].

    The axis is logarithmic where the largest lesion is WIDELY times the smallest, or more.
    """
    seen = [(share, d) for share, d in zip(shares, dice, strict=True) if share > 0]

    def paint(figure: Figure) -> None:
        axes = panel(figure, "lesion's share of the image, per cent", "Dice of the image")
        x, y = [100 * share for share, _ in seen], [d for _, d in seen]
        axes.plot(x, y, "o", color=BLUE, ms=2.8, mew=0, alpha=0.6)
        if seen and max(x) >= WIDELY * min(x):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(0.95, math.floor(min(y, default=0.0) * 20) / 20), 1.01)

    empty = len(shares) - len(seen)
    left = f"; {empty} without lesion are left out" if empty else ""
    return draw("size", f"Dice over lesion size of {len(seen)} test images{left}.", HALF, paint)


def _cell(axes: Axes, x: int, y: int, share: float, of_row: float) -> None:
    axes.add_patch(Rectangle((x + 0.015, y + 0.02), 0.97, 0.96, fc=CELL, alpha=0.06 + 0.9 * of_row))
    colour = "#ffffff" if of_row > 0.5 else INK
    middle: dict[str, Any] = {"color": colour, "ha": "center"}
    axes.text(x + 0.5, y + 0.48, f"{100 * share:.2f}%", fontsize=11, **middle)
    axes.text(x + 0.5, y + 0.7, f"{100 * of_row:.1f}% of the row", fontsize=7, **middle)
