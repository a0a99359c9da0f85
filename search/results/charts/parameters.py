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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lesionseg.space import format_value
from search.results.charts import svg

MAX_SLICES, SLICE_COLUMNS, MAX_AXES = 6, 3, 7
#: Points of a slice, and lines of the best trials; more make the file large.
MAX_POINTS, MAX_LINES = 2000, 200
#: Longer names are shortened in tick labels.
MAX_LABEL = 14
#: Axes whose values differ by this factor are logarithmic.
LOG_AXIS_RATIO = 20.0
#: Height at which a line passes below the axis of a parameter that the trial does not have.
MISSING_HEIGHT = -0.22

Trial = Mapping[str, Any]
Value = float | int | str | bool


@svg.svg_chart(svg.FULL_WIDTH)
def slices_chart(
    figure: Figure, trials: Sequence[Trial], names: Sequence[str], selected: int | None
) -> str:
    """Plot validation Dice by parameter; the first MAX_SLICES parameters."""
    names = names[:MAX_SLICES]
    trials = [t for t in trials if t["dice"] is not None]
    rows, columns = math.ceil(len(names) / SLICE_COLUMNS), min(SLICE_COLUMNS, len(names))
    dice = [t["dice"] for t in trials]
    low, high = svg.lower_limit(dice), max(dice, default=1.0)
    figure.set_figheight(0.25 + 1.75 * rows)
    for i, name in enumerate(names):
        y_label = "" if i % SLICE_COLUMNS else "validation Dice"
        axes = svg.add_axes(figure, name, y_label, rows, columns, i + 1)
        _plot_slice(axes, [t for t in trials if name in t["params"]], name, selected)
        axes.set_ylim(low, high + 0.06 * ((high - low) or 1))
    figure.align_ylabels()
    return f"Validation Dice by {', '.join(names)}."


@svg.svg_chart((svg.FULL_WIDTH[0], 3.1))
def parallel_chart(
    figure: Figure, trials: Sequence[Trial], names: Sequence[str], selected: int | None
) -> str:
    """Plot a line for each complete trial through its parameters to its Dice.

    A line passes below the axis of a parameter that the trial does not have.
    """
    names = names[:MAX_AXES]
    complete = [t for t in trials if t["state"] == "complete" and t["dice"] is not None]
    complete = sorted(complete, key=lambda t: t["dice"])[-MAX_LINES:]
    best = {t["number"] for t in complete[-max(1, len(complete) // 4) :]}
    scales = {n: ParameterScale([t["params"][n] for t in complete if n in t["params"]])
              for n in names}  # fmt: skip
    dice_scale = ParameterScale([t["dice"] for t in complete], digits="{:.3f}")
    styles: dict[str, dict[str, Any]] = {
        "selected": {"color": svg.VERMILION, "lw": 2, "zorder": 4},
        "best quarter": {"color": svg.BLUE, "lw": 1, "alpha": 0.8, "zorder": 3},
        "others": {"color": svg.MUTED, "lw": 0.6, "alpha": 0.45, "zorder": 2, "ls": "--"},
    }
    axes = figure.add_subplot()
    for label, style in styles.items():
        axes.plot([], [], label=label, **style)
    for trial in complete:
        heights = [scale.height(trial["params"].get(name)) for name, scale in scales.items()]
        group = "best quarter" if trial["number"] in best else "others"
        style = styles["selected" if trial["number"] == selected else group]
        axes.plot([*heights, dice_scale.height(trial["dice"])], **style)
    for x, scale in enumerate([*scales.values(), dice_scale]):
        _plot_axis(axes, x, scale)
    # Axes are close together: optimizer.adamw.lr is written on several lines.
    labels = [name.replace(".", ".\n") for name in names]
    axes.set_xticks(range(len(names) + 1), [*labels, "Dice"])
    axes.set_yticks([])
    axes.tick_params(length=0, labelcolor=svg.INK)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.1, len(names) + 0.45), ylim=(-0.26, 1.1))
    svg.add_legend(axes, columns=3)
    return (
        f"Parallel coordinates of {len(complete)} complete trials over {', '.join(names)} and "
        f"Dice; the best quarter is highlighted."
    )


class ParameterScale:
    """Maps values of a parameter to an axis: numbers linear or logarithmic, others by name."""

    def __init__(self, values: Sequence[Value], digits: str = "{:.2g}") -> None:
        is_numeric = bool(values) and not any(isinstance(v, bool | str) for v in values)
        self.categories = [] if is_numeric else sorted(set(map(format_value, values)))
        self.is_integer = all(isinstance(v, int) for v in values)
        numbers = [float(v) for v in values] if is_numeric else [0.0]
        self.low, self.high = min(numbers), max(numbers)
        self.is_log = self.low > 0 and self.high / self.low >= LOG_AXIS_RATIO
        self.digits = digits

    def position(self, value: Value) -> float:
        """Return the number, or the index of the category."""
        return self.categories.index(format_value(value)) if self.categories else float(value)

    def height(self, value: Value | None) -> float:
        """Return a height from 0 to 1; MISSING_HEIGHT without a value."""
        if value is None:
            return MISSING_HEIGHT
        position, low, high = self.position(value), self.low, self.high
        if self.categories:
            low, high = 0.0, len(self.categories) - 1.0
        if self.is_log:
            low, high, position = math.log(low), math.log(high), math.log(position)
        return (position - low) / (high - low) if high > low else 0.5

    def labels(self) -> list[tuple[float, str]]:
        """Return heights and their labels."""
        if self.categories:
            return [(self.height(name), _shorten(name)) for name in self.categories]
        return [(self.height(v), self.digits.format(v)) for v in sorted({self.low, self.high})]


def _plot_slice(axes: Axes, trials: Sequence[Trial], name: str, selected: int | None) -> None:
    step = max(1, math.ceil(len(trials) / MAX_POINTS))
    trials = [t for i, t in enumerate(trials) if i % step == 0 or t["number"] == selected]
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
        is_crowded = sum(map(len, scale.categories)) > 26
        names = [_shorten(c) for c in scale.categories]
        rotated: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, **(rotated if is_crowded else {}))
        axes.set_xlim(-0.5, len(scale.categories) - 0.5)
    elif scale.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
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
