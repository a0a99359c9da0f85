"""Style of the report's charts: SVG with the page's colours and font.

A chart is transparent, scales to the page's width and has an alternative text. Equal input gives
equal bytes. The colours are from the Okabe-Ito palette, which colour-blind people can distinguish.
They are written as CSS variables, so that the page can lighten them in its dark mode.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

INK, MUTED, RULE = "#1c2127", "#5b6570", "#d9dee3"
BLUE, GREEN, VERMILION, PURPLE = "#0072b2", "#009e73", "#d55e00", "#cc79a7"
#: CSS variable of each colour.
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", BLUE: "--blue", GREEN: "--green",
             VERMILION: "--vermilion", PURPLE: "--purple"}  # fmt: skip
#: Figure sizes in inches; the page shows them at about twice the size.
FULL_WIDTH, HALF_WIDTH = (7.4, 2.9), (3.6, 2.5)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "axes.labelsize": 7.5,
    "grid.linewidth": 0.5,
    **dict.fromkeys(["axes.spines.top", "axes.spines.right"], False),
    **dict.fromkeys(["axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], MUTED),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize"], 7),
    **dict.fromkeys(["xtick.major.width", "ytick.major.width"], 0.6),
    **dict.fromkeys(["xtick.major.size", "ytick.major.size"], 2.5),
    "grid.color": RULE,
    "text.color": INK,
}

Points = Sequence[tuple[float, float]]


def render_chart(draw: Callable[[Figure], str], *, wide: bool) -> Markup:
    """Return a chart as SVG for a page.

    draw: draws in a figure and returns the chart's alternative text. wide: whether the chart is as
    wide as the page.
    """
    buffer = io.StringIO()
    with style.context(_STYLE, after_reset=True):  # the user's matplotlibrc has no effect
        figure = Figure(figsize=FULL_WIDTH if wide else HALF_WIDTH, layout="constrained")
        alt = draw(figure)
        # The seed of the ids in the SVG: they differ between the charts of a page.
        mpl.rcParams["svg.hashsalt"] = alt
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), alt)


def add_axes(figure: Figure, x_label: str, y_label: str, *position: int) -> Axes:
    """Add axes with horizontal grid lines. position: as in ``Figure.add_subplot``."""
    axes = figure.add_subplot(*position)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    if x_label in {"epoch", "trial"}:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    return axes


def add_legend(axes: Axes, columns: int) -> None:
    """Add a legend above the axes, where it covers nothing."""
    if axes.lines:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
            handlelength=1.6, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip


def plot_points(axes: Axes, points: Points, style: str = "", **options: Any) -> None:
    """Plot (x, y) pairs; nothing without points, so that the legend has no entry for them."""
    if points:
        axes.plot(*zip(*points, strict=True), style, **options)


def plot_star(axes: Axes, points: Points, label: str = "") -> None:
    """Mark points with a star; the legend shows the value."""
    for x, y in points:
        axes.plot(x, y, "*", color=VERMILION, ms=9, mew=0, zorder=5, clip_on=False,
                  label=f"{label}: {y:.4f}" if label else None)  # fmt: skip


def set_log_x(axes: Axes) -> None:
    """Make the x-axis logarithmic, with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def lower_limit(values: Sequence[float]) -> float:
    """Return the lower limit of an axis: a little below the lowest value that is no outlier."""
    if not values:
        return 0.0
    low, high = np.percentile(values, [25, 75])
    lowest = min(v for v in values if v >= low - 1.5 * (high - low))
    return max(0.0, lowest - 0.06 * ((max(values) - lowest) or max(values)))


def _inline(svg: str, alt: str) -> Markup:
    """Return the drawing without prolog, metadata, size and font, with variables for colours."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body).replace("xlink:href=", "href=")
    # Ids without a reference are the same in every drawing.
    used = {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body)}
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return Markup(f'<svg {box} role="img" aria-label="{escape(alt)}">{body.strip()}')  # noqa: S704
