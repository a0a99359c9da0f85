"""Charts of the trials: optimization history, learning curves, retraining and importances.

A trial is an item of ``search.trials`` in report.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from search.results.charts.svg import (
    BLUE,
    FULL_WIDTH,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILION,
    Points,
    add_axes,
    add_legend,
    lower_limit,
    plot_points,
    plot_star,
    render_svg,
)

#: Curves of each state; more make the file large and cannot be distinguished.
MAX_CURVES = 120
MAX_BARS = 15

Trial = Mapping[str, Any]


def history_chart(trials: Sequence[Trial], selected: int | None) -> Markup:
    """Plot validation Dice by trial number, and the best value so far.

    A pruned trial is shown at its last reported value, a failed one at the lower edge. Outliers far
    below the other trials are triangles at the lower edge.
    """
    points = {
        state: [(t["number"], t["dice"]) for t in trials if t["state"] == state and _has_dice(t)]
        for state in ("complete", "pruned")
    }
    complete, pruned = points["complete"], points["pruned"]
    failed = [t["number"] for t in trials if t["state"] == "failed"]
    lower = lower_limit([dice for _, dice in (*complete, *pruned)])

    def plot(figure: Figure) -> None:
        axes = add_axes(figure, "trial", "validation Dice")
        if complete:
            numbers, values = zip(*complete, strict=True)
            best = [*np.maximum.accumulate(values), max(values)]
            last = max(t["number"] for t in trials)
            axes.step([*numbers, last], best, where="post", color=BLUE, lw=1, label="best so far")
        for name, colour, marker, label in (
            ("complete", BLUE, "o", "complete"),
            ("pruned", MUTED, "D", "pruned (last reported)"),
        ):
            within = [(n, v) for n, v in points[name] if v >= lower]
            below = [(n, lower) for n, v in points[name] if v < lower]
            plot_points(axes, within, marker, color=colour, ms=3, mew=0, label=label)
            plot_points(axes, below, "v", color=colour, ms=4, mew=0, clip_on=False)
        edge = [(n, lower) for n in failed]
        plot_points(axes, edge, "x", color=PURPLE, ms=4, clip_on=False, label="failed")
        plot_star(axes, [(n, v) for n, v in complete if n == selected], "selected")
        axes.set_ylim(lower, None if complete or pruned else 1)
        add_legend(axes, columns=6)

    alt = (
        f"Validation Dice of {len(complete)} complete and {len(pruned)} pruned trials by number; "
        f"{len(failed)} failed. "
    )
    if complete:
        number, value = max(complete, key=lambda point: (point[1], -point[0]))
        alt += f"The best is trial {number} with {value:.4f}."
    else:
        alt += "None is complete."
    return render_svg("history", alt, FULL_WIDTH, plot)


def curves_chart(trials: Sequence[Trial], selected: int | None) -> Markup:
    """Plot validation Dice by epoch, one curve for each trial."""
    curves: dict[str, list[Points]] = {"complete": [], "pruned": [], "failed": []}
    selected_curve: Points = []
    for trial in trials:
        curve = [(epoch, dice) for epoch, dice in trial["curve"] if dice is not None]
        if trial["number"] == selected:
            selected_curve = curve
        elif curve and trial["state"] in curves:
            curves[trial["state"]].append(curve)

    def plot(figure: Figure) -> None:
        axes = add_axes(figure, "epoch", "validation Dice")
        for state, colour, line, marker in (
            ("complete", BLUE, "-", ""),
            ("pruned", MUTED, "--", "D"),
            ("failed", PURPLE, ":", "x"),
        ):
            step = max(1, math.ceil(len(curves[state]) / MAX_CURVES))
            for i, curve in enumerate(curves[state][::step]):
                plot_points(
                    axes, curve, line, color=colour, alpha=0.5, lw=0.8, ms=3, mew=0.8,
                    marker=marker or ("o" if len(curve) == 1 else ""), markevery=[-1],
                    label="" if i else state,
                )  # fmt: skip
        marker = "o" if len(selected_curve) == 1 else ""
        plot_points(axes, selected_curve, marker=marker, ms=4, color=VERMILION, lw=2,
                    label="selected")  # fmt: skip
        add_legend(axes, columns=4)

    counts = ", ".join(f"{len(each)} {state}" for state, each in curves.items() if each) or "none"
    alt = f"Validation Dice by epoch: the selected trial's curve; of the other trials {counts}."
    return render_svg("curves", alt, FULL_WIDTH, plot)


def retraining_chart(epochs: Sequence[Mapping[str, float]], kept_epoch: int) -> Markup:
    """Plot losses and validation Dice of a training. kept_epoch: the epoch of its weights."""
    dice = [(row["epoch"], row["dice"]) for row in epochs]
    marker = "o" if len(epochs) == 1 else ""

    def plot(figure: Figure) -> None:
        losses = add_axes(figure, "epoch", "loss", 1, 2, 1)
        scores = add_axes(figure, "epoch", "validation Dice", 1, 2, 2)
        for axes, key, colour, label in (
            (losses, "train_loss", GREEN, "training"),
            (losses, "val_loss", BLUE, "validation"),
            (scores, "dice", BLUE, "validation"),
        ):
            points = [(row["epoch"], row[key]) for row in epochs]
            plot_points(axes, points, marker=marker, ms=4, color=colour, label=label)
        plot_star(scores, [(e, d) for e, d in dice if e == kept_epoch], f"epoch {kept_epoch}")
        add_legend(losses, columns=2)
        add_legend(scores, columns=2)

    alt = (
        f"Losses and validation Dice of the retraining over {len(epochs)} epochs; the weights are "
        f"of epoch {kept_epoch}, Dice {dict(dice).get(kept_epoch, math.nan):.4f}."
    )
    return render_svg("retraining", alt, FULL_WIDTH, plot)


def importance_chart(shares: Mapping[str, float]) -> Markup:
    """Plot a bar for each parameter, in the given order; at most MAX_BARS."""
    names, values = zip(*list(shares.items())[:MAX_BARS], strict=True)

    def plot(figure: Figure) -> None:
        axes = add_axes(figure, "share of the importance", "")
        axes.grid(visible=False)
        bars = axes.barh(range(len(names)), values, height=0.62, color=BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3, color=INK, fontsize=7)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1.12 * max(values))
        axes.invert_yaxis()

    pairs = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, values, strict=True))
    size = (FULL_WIDTH[0], 0.55 + 0.21 * len(names))
    return render_svg("importance", f"Shares: {pairs}.", size, plot)


def _has_dice(trial: Trial) -> bool:
    return trial["dice"] is not None and math.isfinite(trial["dice"])
