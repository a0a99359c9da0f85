"""Charts of the trials: optimization history, learning curves, retraining and importances.

A trial is an item of ``search.trials`` in report.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from search.results.charts import svg

#: Curves of each state; more make the file large and cannot be distinguished.
MAX_CURVES = 120
MAX_BARS = 15

Trial = Mapping[str, Any]


@svg.svg_chart(svg.FULL_WIDTH)
def history_chart(figure: Figure, trials: Sequence[Trial], selected: int | None) -> str:
    """Plot validation Dice by trial number, and the best value so far.

    A pruned trial is shown at its last reported value, a failed one at the lower edge. Outliers far
    below the other trials are triangles at the lower edge.
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
        within = [(n, v) for n, v in points if v >= lower]
        below = [(n, lower) for n, v in points if v < lower]
        svg.plot_points(axes, within, marker, color=colour, ms=3, mew=0, label=label)
        svg.plot_points(axes, below, "v", color=colour, ms=4, mew=0, clip_on=False)
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


@svg.svg_chart(svg.FULL_WIDTH)
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
        step = max(1, math.ceil(len(curves[state]) / MAX_CURVES))
        for i, curve in enumerate(curves[state][::step]):
            svg.plot_points(
                axes, curve, line, color=colour, alpha=0.5, lw=0.8, ms=3, mew=0.8,
                marker=marker or ("o" if len(curve) == 1 else ""), markevery=[-1],
                label="" if i else state,
            )  # fmt: skip
    marker = "o" if len(selected_curve) == 1 else ""
    svg.plot_points(axes, selected_curve, marker=marker, ms=4, color=svg.VERMILION, lw=2,
                    label="selected")  # fmt: skip
    svg.add_legend(axes, columns=4)
    counts = ", ".join(f"{len(each)} {state}" for state, each in curves.items() if each) or "none"
    return f"Validation Dice by epoch: the selected trial's curve; of the other trials {counts}."


@svg.svg_chart(svg.FULL_WIDTH)
def retraining_chart(figure: Figure, epochs: Sequence[Mapping[str, float]], kept_epoch: int) -> str:
    """Plot losses and validation Dice of a training. kept_epoch: the epoch of its weights."""
    dice = {row["epoch"]: row["dice"] for row in epochs}
    marker = "o" if len(epochs) == 1 else ""
    losses = svg.add_axes(figure, "epoch", "loss", 1, 2, 1)
    scores = svg.add_axes(figure, "epoch", "validation Dice", 1, 2, 2)
    for axes, key, colour, label in (
        (losses, "train_loss", svg.GREEN, "training"),
        (losses, "val_loss", svg.BLUE, "validation"),
        (scores, "dice", svg.BLUE, "validation"),
    ):
        points = [(row["epoch"], row[key]) for row in epochs]
        svg.plot_points(axes, points, marker=marker, ms=4, color=colour, label=label)
    svg.plot_star(scores, [(kept_epoch, dice[kept_epoch])], f"epoch {kept_epoch}")
    svg.add_legend(losses, columns=2)
    svg.add_legend(scores, columns=2)
    return (
        f"Losses and validation Dice of the retraining over {len(epochs)} epochs; the weights are "
        f"of epoch {kept_epoch}, Dice {dice[kept_epoch]:.4f}."
    )


@svg.svg_chart(svg.FULL_WIDTH)
def importance_chart(figure: Figure, shares: Mapping[str, float]) -> str:
    """Plot a bar for each parameter, in the given order; at most MAX_BARS."""
    names, values = zip(*list(shares.items())[:MAX_BARS], strict=True)
    figure.set_figheight(0.55 + 0.21 * len(names))
    axes = svg.add_axes(figure, "share of the importance", "")
    axes.grid(visible=False)
    bars = axes.barh(range(len(names)), values, height=0.62, color=svg.BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, color=svg.INK, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=svg.INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.12 * max(values))
    axes.invert_yaxis()
    pairs = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, values, strict=True))
    return f"Shares: {pairs}."
