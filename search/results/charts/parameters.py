"""Charts of the search space: Dice by parameter, and parallel coordinates.

Optuna's matplotlib plots show complete trials only and have fixed colours, so these are our own.
A trial is an item of ``search.trials`` in report.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesionseg.space import format_value
from search.results.charts import svg

MAX_SLICES, SLICE_COLUMNS, MAX_AXES = 6, 3, 7
#: Longer names are shortened in tick labels.
MAX_LABEL = 14
#: Axes whose values differ by this factor are logarithmic.
LOG_AXIS_RATIO = 20.0
#: Height at which a line passes below the axis of a parameter that the trial does not have.
MISSING_HEIGHT = -0.22

Trial = Mapping[str, Any]
Value = float | int | str | bool


def slices_chart(
    figure: Figure, trials: Sequence[Trial], names: Sequence[str], selected: int | None
) -> str:
    """Plot validation Dice by parameter; the first MAX_SLICES parameters."""
    names = names[:MAX_SLICES]
    trials = [t for t in trials if t["dice"] is not None]
    rows, columns = math.ceil(len(names) / SLICE_COLUMNS), min(SLICE_COLUMNS, len(names))
    low = svg.lower_limit([t["dice"] for t in trials])
    figure.set_figheight(0.25 + 1.75 * rows)
    for i, name in enumerate(names):
        y_label = "" if i % SLICE_COLUMNS else "validation Dice"
        axes = svg.add_axes(figure, name, y_label, rows, columns, i + 1)
        _plot_slice(axes, [t for t in trials if name in t["params"]], name, selected)
        axes.set_ylim(bottom=low)
    figure.align_ylabels()
    return f"Validation Dice by {', '.join(names)}."


def parallel_chart(
    figure: Figure, trials: Sequence[Trial], names: Sequence[str], selected: int | None
) -> str:
    """Plot a line for each complete trial through its parameters to its Dice.

    A line passes below the axis of a parameter that the trial does not have.
    """
    figure.set_figheight(3.1)
    complete = [t for t in trials if t["state"] == "complete" and t["dice"] is not None]
    complete.sort(key=lambda t: -t["dice"])
    names = [*names[:MAX_AXES], "Dice"]
    rows = [t["params"] | {"Dice": t["dice"]} for t in complete]
    scales = {n: ParameterScale([row[n] for row in rows if n in row]) for n in names}
    styles: dict[str, dict[str, Any]] = {
        "selected": {"color": svg.VERMILION, "lw": 2, "zorder": 4},
        "best quarter": {"color": svg.BLUE, "lw": 1, "alpha": 0.8, "zorder": 3},
        "others": {"color": svg.MUTED, "lw": 0.6, "alpha": 0.45, "zorder": 2, "ls": "--"},
    }
    axes = figure.add_subplot()
    for label, style in styles.items():
        axes.plot([], [], label=label, **style)
    for rank, (trial, row) in enumerate(zip(complete, rows, strict=True)):
        group = "best quarter" if rank < max(1, len(rows) // 4) else "others"
        style = styles["selected" if trial["number"] == selected else group]
        axes.plot([scale.height(row.get(name)) for name, scale in scales.items()], **style)
    for x, scale in enumerate(scales.values()):
        _plot_axis(axes, x, scale)
    # Axes are close together: optimizer.adamw.lr is written on several lines.
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n") for name in names])
    axes.set_yticks([])
    axes.tick_params(length=0, labelcolor=svg.INK)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.1, len(names) - 0.55), ylim=(-0.26, 1.1))
    svg.add_legend(axes, columns=3)
    return (
        f"Parallel coordinates of {len(complete)} complete trials over {', '.join(names)}; "
        f"the best quarter is highlighted."
    )


class ParameterScale:
    """Maps values of a parameter to an axis: numbers linear or logarithmic, others by name."""

    def __init__(self, values: Sequence[Value]) -> None:
        is_numeric = not any(isinstance(v, bool | str) for v in values)
        self.categories = [] if is_numeric else sorted(set(map(format_value, values)))
        self.is_integer = all(isinstance(v, int) for v in values)
        positions = list(map(self.position, values)) or [0.0]
        self.low, self.high = min(positions), max(positions)
        self.is_log = self.low > 0 and self.high / self.low >= LOG_AXIS_RATIO

    def position(self, value: Value) -> float:
        """Return the number, or the index of the category."""
        return self.categories.index(format_value(value)) if self.categories else float(value)

    def height(self, value: Value | None) -> float:
        """Return a height from 0 to 1; MISSING_HEIGHT without a value."""
        if value is None:
            return MISSING_HEIGHT
        position, low, high = self.position(value), self.low, self.high
        if self.is_log:
            position, low, high = map(math.log, (position, low, high))
        return (position - low) / (high - low) if high > low else 0.5

    def labels(self) -> list[tuple[float, str]]:
        """Return heights and their labels."""
        if self.categories:
            return [(self.height(name), _shorten(name)) for name in self.categories]
        return [(self.height(value), f"{value:.3g}") for value in sorted({self.low, self.high})]


def _plot_slice(axes: Axes, trials: Sequence[Trial], name: str, selected: int | None) -> None:
    scale = ParameterScale([t["params"][name] for t in trials])
    points: dict[str, list[tuple[float, float]]] = {"pruned": [], "complete": [], "selected": []}
    for trial in trials:
        x, key = scale.position(trial["params"][name]), trial["state"]
        if trial["number"] == selected:
            key = "selected"
        elif scale.categories:  # spread the points of a category evenly, always in the same way
            x += ((trial["number"] * 0.618034) % 1 - 0.5) * 0.5
        points[key].append((x, trial["dice"]))
    svg.plot_points(axes, points["pruned"], "D", color=svg.MUTED, ms=2.4, mew=0, alpha=0.75)
    svg.plot_points(axes, points["complete"], "o", color=svg.BLUE, ms=3.2, mew=0, alpha=0.75)
    svg.plot_star(axes, points["selected"])
    if scale.categories:
        names = [_shorten(c) for c in scale.categories]
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(scale.categories) - 0.5)
    elif scale.is_log:
        svg.set_log_x(axes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=scale.is_integer))


def _plot_axis(axes: Axes, x: int, scale: ParameterScale) -> None:
    """Plot a vertical axis: labels at its ends are beyond them, others to the right."""
    axes.plot([x, x], [0, 1], color=svg.RULE, lw=1, zorder=1)
    for height, text in scale.labels():
        ends = {0.0: ("center", "top", 0, -0.03), 1.0: ("center", "bottom", 0, 0.02)}
        ha, va, right, up = ends.get(height, ("left", "center", 0.04, 0))
        axes.text(x + right, height + up, text, fontsize=6.5, color=svg.INK, ha=ha, va=va, zorder=6)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
