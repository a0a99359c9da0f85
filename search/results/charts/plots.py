"""Charts of the trials and of the final test.

A trial is an item of ``search.trials`` in report.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.results.charts import svg

#: Ratio of the largest to the smallest lesion from which on the axis is logarithmic.
LOG_AXIS_RATIO = 8.0

Trial = Mapping[str, Any]


def history_chart(figure: Figure, trials: Sequence[Trial], selected: int | None) -> str:
    """Plot validation Dice by trial number, and the best value so far.

    A pruned trial is shown at its last reported value. Failed trials, and outliers far below the
    other trials, are at the lower edge.
    """
    complete, pruned = (
        [(t["number"], t["dice"]) for t in trials if t["state"] == state and t["dice"] is not None]
        for state in ("complete", "pruned")
    )
    failed = [t["number"] for t in trials if t["state"] == "failed"]
    lower = svg.lower_limit([dice for _, dice in (*complete, *pruned)])
    axes = svg.add_axes(figure, "trial", "validation Dice")
    if complete:
        numbers, values = zip(*complete, strict=True)
        best = [*np.maximum.accumulate(values), max(values)]
        last = max(t["number"] for t in trials)
        axes.step([*numbers, last], best, where="post", color=svg.BLUE, lw=1, label="best so far")
    for points, colour, marker, label in (
        (complete, svg.BLUE, "o", "complete"),
        (pruned, svg.MUTED, "D", "pruned (last reported)"),
    ):
        raised = [(number, max(dice, lower)) for number, dice in points]
        svg.plot_points(axes, raised, marker, color=colour, ms=3, mew=0, clip_on=False, label=label)
    edge = [(n, lower) for n in failed]
    svg.plot_points(axes, edge, "x", color=svg.PURPLE, ms=4, clip_on=False, label="failed")
    svg.plot_star(axes, [(n, v) for n, v in complete if n == selected], "selected")
    axes.set_ylim(lower, None if complete or pruned else 1)
    svg.add_legend(axes, columns=6)
    alt = (
        f"Validation Dice of {len(complete)} complete and {len(pruned)} pruned trials by number; "
        f"{len(failed)} failed. "
    )
    if not complete:
        return alt + "None is complete."
    number, value = max(complete, key=lambda point: (point[1], -point[0]))
    return f"{alt}The best is trial {number} with {value:.4f}."


def curves_chart(figure: Figure, trials: Sequence[Trial], selected: int | None) -> str:
    """Plot validation Dice by epoch, one curve for each trial."""
    curves: dict[str, list[svg.Points]] = {"complete": [], "pruned": [], "failed": []}
    selected_curve: svg.Points = []
    for trial in trials:
        curve = [(epoch, dice) for epoch, dice in trial["curve"] if dice is not None]
        if trial["number"] == selected:
            selected_curve = curve
        elif curve and trial["state"] in curves:
            curves[trial["state"]].append(curve)
    axes = svg.add_axes(figure, "epoch", "validation Dice")
    for state, colour, line, marker in (
        ("complete", svg.BLUE, "-", ""),
        ("pruned", svg.MUTED, "--", "D"),
        ("failed", svg.PURPLE, ":", "x"),
    ):
        for i, points in enumerate(curves[state]):
            svg.plot_points(
                axes, points, line, color=colour, alpha=0.5, lw=0.8, ms=3, mew=0.8,
                marker=marker, markevery=[-1], label="" if i else state,
            )  # fmt: skip
    svg.plot_points(axes, selected_curve, color=svg.VERMILION, lw=2, label="selected")
    svg.add_legend(axes, columns=4)
    counts = ", ".join(f"{len(each)} {state}" for state, each in curves.items() if each) or "none"
    return f"Validation Dice by epoch: the selected trial's curve; of the other trials {counts}."


def retraining_chart(figure: Figure, epochs: Sequence[Mapping[str, float]], kept_epoch: int) -> str:
    """Plot losses and validation Dice of a training. kept_epoch: the epoch of its weights."""
    dice = {row["epoch"]: row["dice"] for row in epochs}
    losses = svg.add_axes(figure, "epoch", "loss", 1, 2, 1)
    scores = svg.add_axes(figure, "epoch", "validation Dice", 1, 2, 2)
    for axes, key, colour, label in (
        (losses, "train_loss", svg.GREEN, "training"),
        (losses, "val_loss", svg.BLUE, "validation"),
        (scores, "dice", svg.BLUE, "validation"),
    ):
        points = [(row["epoch"], row[key]) for row in epochs]
        svg.plot_points(axes, points, color=colour, label=label)
    svg.plot_star(scores, [(kept_epoch, dice[kept_epoch])], f"epoch {kept_epoch}")
    svg.add_legend(losses, columns=2)
    svg.add_legend(scores, columns=2)
    return (
        f"Losses and validation Dice of the retraining over {len(epochs)} epochs; the weights are "
        f"of epoch {kept_epoch}, Dice {dice[kept_epoch]:.4f}."
    )


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


def size_chart(figure: Figure, shares: Sequence[float], dice: Sequence[float]) -> str:
    """Plot the Dice of the test images by the lesion's share of the image, in (0, 1]."""
    points = [(100 * share, d) for share, d in zip(shares, dice, strict=True) if share > 0]
    sizes = [size for size, _ in points]
    axes = svg.add_axes(figure, "lesion's share of the image, percent", "Dice of the image")
    svg.plot_points(axes, points, "o", color=svg.BLUE, ms=2.8, mew=0, alpha=0.6)
    if points and max(sizes) >= LOG_AXIS_RATIO * min(sizes):
        svg.set_log_x(axes)
    axes.set_ylim(top=1.01)
    empty = len(shares) - len(points)
    excluded = f"; {empty} without lesion are not shown" if empty else ""
    return f"Dice over lesion size of {len(points)} test images{excluded}."


def disagreement_chart(figure: Figure, points: svg.Points, marked: int) -> str:
    """Plot the Dice of the test images by the disagreement of the members.

    points: pairs of disagreement and Dice, the largest disagreement first. marked: number of points
    that are highlighted, from the first one.
    """
    axes = svg.add_axes(figure, "disagreement of the members", "Dice of the image")
    svg.plot_points(axes, points[marked:], "o", color=svg.BLUE, ms=2.8, mew=0, alpha=0.6)
    svg.plot_points(
        axes, points[:marked], "D", color=svg.VERMILION, ms=3.6, mew=0, label="largest disagreement"
    )
    axes.set_ylim(top=1.01)
    svg.add_legend(axes, columns=1)
    return (
        f"Dice over the disagreement of the members of {len(points)} test images; the {marked} of "
        "largest disagreement are highlighted."
    )
