"""Charts of the space that was searched: Dice against each parameter, and all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from search.results.charts.svg import (
    BLUE,
    INK,
    MUTED,
    RULE,
    VERMILION,
    WIDE,
    draw,
    legend,
    panel,
)

#: Slices drawn at most, and in a row; axes of parallel coordinates at most.
MOST_SLICES, IN_A_ROW, MOST_AXES = 6, 3, 7
#: Points of a slice at most: more are neither seen nor light.
MOST_POINTS = 2000
#: Lines of parallel coordinates at most, the best ones.
MOST_LINES = 200
#: A name longer than this is cut in a tick label.
LONGEST = 14

Trial = Mapping[str, Any]
Value = float | int | str | bool


def slices_chart(rows: Sequence[Trial], names: Sequence[str], winner: int | None) -> Markup:
    """Validation Dice against one parameter after the other, MOST_SLICES at most.

    rows: trials with ``number``, ``state``, ``dice`` (None: left out) and ``params``.
    """
    shown = list(names)[:MOST_SLICES]
    seen = [row for row in rows if row["dice"] is not None]
    lines = math.ceil(len(shown) / IN_A_ROW)
    columns = min(IN_A_ROW, len(shown))
    low = _low([row["dice"] for row in seen if row["state"] == "complete"])
    high = max((row["dice"] for row in seen), default=1.0)

    def paint(figure: Figure) -> None:
        for i, name in enumerate(shown):
            axes = panel(figure, name, "" if i % IN_A_ROW else "validation Dice",
                         lines, columns, i + 1)  # fmt: skip
            members = _some([row for row in seen if name in row["params"]], winner)
            place = _scale([row["params"][name] for row in members])
            _slice(axes, members, name, place, winner)
            _ticks(axes.xaxis, place)
            axes.set_ylim(low, high + 0.06 * ((high - low) or 1))
        figure.align_ylabels()

    alt = "Validation Dice against each of " + ", ".join(shown) + "."
    return draw("slices", alt, (WIDE[0], 0.25 + 1.75 * lines), paint)


def parallel_chart(rows: Sequence[Trial], names: Sequence[str], winner: int | None) -> Markup:
    """A line for each complete trial through its parameters to its Dice; the best stand out.

    A parameter that a trial does not have is crossed at the lower edge.
    """
    done = sorted(
        (r for r in rows if r["state"] == "complete" and r["dice"] is not None),
        key=lambda r: r["dice"],
    )[-MOST_LINES:]
    shown = list(names)[:MOST_AXES]
    best = {r["number"] for r in done[len(done) - max(1, len(done) // 4) :]}
    scales = {n: _scale([r["params"][n] for r in done if n in r["params"]]) for n in shown}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.spines[:].set_visible(False)
        low, high = done[0]["dice"], done[-1]["dice"]
        for row in done:
            heights = [scales[n].height(row["params"].get(n)) for n in shown]
            heights.append((row["dice"] - low) / (high - low) if high > low else 0.5)
            _path(axes, heights, row["number"], best, winner)
        for x, name in enumerate(shown):
            _axis(axes, x, scales[name].labels())
        _axis(axes, len(shown), [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")])
        axes.set_xticks(range(len(shown) + 1), [*map(_broken, shown), "Dice"])
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_yticks([])
        axes.set(xlim=(-0.1, len(shown) + 0.45), ylim=(-0.26, 1.1))
        _key(axes)

    alt = (
        f"Parallel coordinates of {len(done)} complete trials over {', '.join(shown)} and Dice; "
        f"the best quarter stands out."
    )
    return draw("parallel", alt, (WIDE[0], 3.1), paint)


class _Scale:
    """Where values of one parameter stand between 0 and 1."""

    def __init__(self, values: Sequence[Value]) -> None:
        self.names: list[str] = []
        self.log = False
        self.whole = all(isinstance(v, int) for v in values)
        if not _numeric(values):
            self.names = sorted({_told(v) for v in values})
            return
        self.low, self.high = float(min(values)), float(max(values))
        self.log = self.low > 0 and self.high / self.low >= 20

    def position(self, value: Value) -> float:
        """On an axis of its own: the number itself, or its place among the names."""
        return float(self.names.index(_told(value))) if self.names else float(value)

    def height(self, value: Value | None) -> float:
        """From 0 to 1; below 0 where there is no value."""
        if value is None:
            return -0.22
        if self.names:
            return self.position(value) / (len(self.names) - 1) if len(self.names) > 1 else 0.5
        turn: Callable[[float], float] = math.log if self.log else float
        low, high = turn(self.low), turn(self.high)
        return (turn(float(value)) - low) / (high - low) if high > low else 0.5

    def labels(self) -> list[tuple[float, str]]:
        """Heights and what is written there."""
        if self.names:
            return [(self.height(name), _cut(name)) for name in self.names]
        if self.high == self.low:
            return [(0.5, f"{self.low:.2g}")]
        return [(0.0, f"{self.low:.2g}"), (1.0, f"{self.high:.2g}")]


def _scale(values: Sequence[Value]) -> _Scale:
    return _Scale(values)


def _numeric(values: Sequence[Value]) -> bool:
    return bool(values) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )


def _told(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _broken(name: str) -> str:
    """``optimizer.adamw.lr`` in lines: axes stand close."""
    return name.replace(".", ".\n")


def _low(values: Sequence[float]) -> float:
    """The lower end: a few bad trials are left out of sight, so that the others part."""
    if not values:
        return 0.0
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1]
    return max(0.0, low - 0.15 * ((high - low) or 0.1))


def _slice(
    axes: Axes, members: Sequence[Trial], name: str, place: _Scale, winner: int | None
) -> None:
    if place.log:
        axes.set_xscale("log")
    for state, colour, marker in (("pruned", MUTED, "D"), ("complete", BLUE, "o")):
        points = [
            (place.position(r["params"][name]) + _aside(place, r["number"]), r["dice"])
            for r in members
            if r["state"] == state and r["number"] != winner
        ]
        size = 3.2 if marker == "o" else 2.4
        axes.plot(*zip(*points, strict=True) if points else ((), ()), marker, color=colour,
                  ms=size, mew=0, alpha=0.75)  # fmt: skip
    for row in members:
        if row["number"] == winner:
            x = place.position(row["params"][name])
            axes.plot(x, row["dice"], "*", color=VERMILION, ms=9, mew=0, zorder=5, clip_on=False)


def _some(members: Sequence[Trial], winner: int | None) -> list[Trial]:
    """MOST_POINTS of them, evenly chosen, and the winner."""
    step = max(1, math.ceil(len(members) / MOST_POINTS))
    return [row for i, row in enumerate(members) if i % step == 0 or row["number"] == winner]


def _aside(place: _Scale, number: int) -> float:
    """Points of one name are spread, always the same way; 0.618 fills the gaps evenly."""
    return ((number * 0.618034) % 1 - 0.5) * 0.5 if place.names else 0.0


def _ticks(axis: Any, place: _Scale) -> None:
    if not place.names:
        if place.log:
            axis.set_major_locator(LogLocator(numticks=5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(5, integer=place.whole))
        return
    crowded = sum(map(len, place.names)) > 26
    how = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.axes.set_xticks(range(len(place.names)), [_cut(n) for n in place.names], **how)
    axis.axes.set_xlim(-0.5, len(place.names) - 0.5)


def _path(
    axes: Axes, heights: Sequence[float], number: int, best: set[int], winner: int | None
) -> None:
    if number == winner:
        axes.plot(range(len(heights)), heights, color=VERMILION, lw=2, zorder=4)
    elif number in best:
        axes.plot(range(len(heights)), heights, color=BLUE, lw=1, alpha=0.8, zorder=3)
    else:
        axes.plot(range(len(heights)), heights, "--", color=MUTED, lw=0.6, alpha=0.45, zorder=2)


def _axis(axes: Axes, x: int, labels: Sequence[tuple[float, str]]) -> None:
    axes.plot([x, x], [0, 1], color=RULE, lw=1, zorder=1)
    for height, text in labels:
        # At the ends beyond the lines; between them beside the axis.
        where = {0.0: ("center", "top", 0, -0.03), 1.0: ("center", "bottom", 0, 0.02)}
        ha, va, right, up = where.get(height, ("left", "center", 0.04, 0))
        axes.text(x + right, height + up, text, fontsize=6.5, color=INK, ha=ha, va=va, zorder=6)


def _key(axes: Axes) -> None:
    for style, colour, width, label in (
        ("-", VERMILION, 2.0, "the winner"),
        ("-", BLUE, 1.0, "best quarter"),
        ("--", MUTED, 0.6, "the others"),
    ):
        axes.plot([], [], style, color=colour, lw=width, label=label)
    legend(axes, columns=3)
