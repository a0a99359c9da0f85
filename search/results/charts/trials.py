"""Charts of the search: history, learning curves, importances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from search.results.charts.svg import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILION,
    WIDE,
    Points,
    draw,
    legend,
    line,
    panel,
    star,
    xy,
)
from search.storage import trial_records
from search.storage.trial_records import state_of

#: Curves drawn at most of each state: more are neither seen nor light.
MOST_CURVES = 120
#: Bars drawn at most.
MOST_BARS = 15


def history_chart(known: Iterable[FrozenTrial], winner: int | None) -> Markup:
    """Validation Dice by the trial's number, and the best so far.

    A pruned trial stands at the last value that it reported, a failed one at the lower edge.
    So do outliers far below all others, as triangles, so that the rest can be told apart.
    """
    known = list(known)
    complete = _points(known, "complete", lambda t: t.value)
    pruned = _points(known, "pruned", last_value)
    failed = [t.number for t in known if state_of(t) == "failed"]
    floor = _floor([v for _, v in (*complete, *pruned)])

    def paint(figure: Figure) -> None:
        axes = panel(figure, "trial", "validation Dice")
        _scatter(axes, complete, floor, BLUE, "o", "complete")
        _best_so_far(axes, complete, [t.number for t in known])
        _scatter(axes, pruned, floor, MUTED, "D", "pruned (last reported)")
        if failed:
            edge = [floor] * len(failed)
            axes.plot(failed, edge, "x", color=PURPLE, ms=4, clip_on=False, label="failed")
        star(axes, [(n, v) for n, v in complete if n == winner], "the winner")
        axes.set_ylim(floor, None if complete or pruned else 1)
        legend(axes, columns=6)

    alt = (
        f"Validation Dice of {len(complete)} complete and {len(pruned)} pruned trials by number; "
        f"{len(failed)} failed. {_best_text(complete)}"
    )
    return draw("history", alt, WIDE, paint)


def curves_chart(known: Iterable[FrozenTrial], winner: int | None) -> Markup:
    """Validation Dice by epoch, a curve for each trial; the winner's stands out."""
    by_state: dict[str, list[Points]] = {"complete": [], "pruned": [], "failed": []}
    best: Points = []
    for trial in known:
        reported = _reported(trial)
        if trial.number == winner:
            best = reported
        elif reported and state_of(trial) in by_state:
            by_state[state_of(trial)].append(reported)

    def paint(figure: Figure) -> None:
        axes = panel(figure, "epoch", "validation Dice")
        _curves(axes, by_state["complete"], BLUE, "-", "", "complete")
        _curves(axes, by_state["pruned"], MUTED, "--", "D", "pruned")
        _curves(axes, by_state["failed"], PURPLE, ":", "x", "failed")
        if best:
            mark = "o" if len(best) == 1 else ""
            axes.plot(*xy(best), marker=mark, ms=4, color=VERMILION, lw=2, label="the winner")
        legend(axes, columns=4)

    counted = ", ".join(f"{len(c)} {s}" for s, c in by_state.items() if c) or "none"
    alt = f"Validation Dice by epoch: the winner's curve, and of the other trials {counted}."
    return draw("curves", alt, WIDE, paint)


def retraining_chart(rows: Sequence[Mapping[str, float]], kept: int) -> Markup:
    """Losses and validation Dice of one training by epoch; kept: the epoch of its weights."""
    epochs = [row["epoch"] for row in rows]

    def paint(figure: Figure) -> None:
        left = panel(figure, "epoch", "loss", 1, 2, 1)
        for key, label, colour in (
            ("train_loss", "training", GREEN),
            ("val_loss", "validation", BLUE),
        ):
            line(left, epochs, [row[key] for row in rows], colour, label)
        right = panel(figure, "epoch", "validation Dice", 1, 2, 2)
        dice = [row["dice"] for row in rows]
        line(right, epochs, dice, BLUE, "validation")
        at = [(int(e), d) for e, d in zip(epochs, dice, strict=True) if e == kept]
        star(right, at, f"epoch {kept}")
        for axes in (left, right):
            legend(axes, columns=2)

    dice_kept = next((row["dice"] for row in rows if row["epoch"] == kept), math.nan)
    alt = (
        f"Losses and validation Dice of the retraining over {len(rows)} epochs; "
        f"the weights are of epoch {kept}, Dice {dice_kept:.4f}."
    )
    return draw("retraining", alt, WIDE, paint)


def importance_chart(shares: Mapping[str, float]) -> Markup:
    """A bar for each parameter's share, the largest on top; MOST_BARS at most."""
    shown = list(shares.items())[:MOST_BARS]

    def paint(figure: Figure) -> None:
        axes = panel(figure, "share of the importance", "")
        axes.grid(visible=False)
        values = [share for _, share in shown]
        bars = axes.barh(range(len(shown)), values, height=0.62, color=BLUE)
        axes.bar_label(bars, [f"{v:.2f}" for v in values], padding=3, color=INK, fontsize=7)
        axes.set_yticks(range(len(shown)), [name for name, _ in shown])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1.12 * max(values))
        axes.invert_yaxis()

    alt = "Shares: " + ", ".join(f"{name} {share:.2f}" for name, share in shown) + "."
    return draw("importance", alt, (WIDE[0], 0.55 + 0.21 * len(shown)), paint)


def last_value(trial: FrozenTrial) -> float | None:
    """The last value that a trial reported; None if there is none."""
    return trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None


def _points(
    known: Iterable[FrozenTrial], state: str, value: Callable[[FrozenTrial], float | None]
) -> Points:
    found = ((t.number, value(t)) for t in known if state_of(t) == state)
    return [(n, v) for n, v in found if v is not None and math.isfinite(v)]


def _reported(trial: FrozenTrial) -> Points:
    return [(e, v) for e, v in trial_records.dice_by_epoch(trial).items() if math.isfinite(v)]


def _floor(values: list[float]) -> float:
    """The lower end of an axis: a little under the lowest value that is no outlier."""
    if not values:
        return 0.0
    low, high = np.percentile(values, [25, 75])
    seen = min(v for v in values if v >= low - 1.5 * (high - low))
    return max(0.0, seen - 0.06 * ((max(values) - seen) or max(values)))


def _scatter(
    axes: Axes, points: Points, floor: float, colour: str, marker: str, label: str
) -> None:
    if not points:
        return  # nor a word in the legend
    seen = [(n, v) for n, v in points if v >= floor]
    size = 3.5 if marker == "o" else 2.8
    axes.plot(*xy(seen), marker, color=colour, ms=size, mew=0, label=label)
    below = [n for n, v in points if v < floor]
    if below:  # an empty line that is not clipped would cost the layout its left margin
        axes.plot(below, [floor] * len(below), "v", color=colour, ms=4, mew=0, clip_on=False)


def _best_so_far(axes: Axes, complete: Points, numbers: list[int]) -> None:
    if not complete:
        return
    best = np.maximum.accumulate([v for _, v in complete]).tolist()
    steps = [n for n, _ in complete]
    axes.step([*steps, max(numbers)], [*best, best[-1]], where="post", color=BLUE, lw=1,
              label="best so far")  # fmt: skip


def _curves(
    axes: Axes, curves: list[Points], colour: str, dashes: str, marker: str, label: str
) -> None:
    step = max(1, math.ceil(len(curves) / MOST_CURVES))
    for i, curve in enumerate(curves[::step]):
        end = marker or ("o" if len(curve) == 1 else "")
        axes.plot(
            *xy(curve), dashes, color=colour, alpha=0.5, lw=0.8, marker=end, ms=3, mew=0.8,
            markevery=[-1], label="" if i else label,
        )  # fmt: skip


def _best_text(complete: Points) -> str:
    if not complete:
        return "None is complete."
    number, value = max(complete, key=lambda point: (point[1], -point[0]))
    return f"The best is trial {number} with {value:.4f}."
