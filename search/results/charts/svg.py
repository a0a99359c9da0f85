"""How every chart of the report is drawn: as SVG that takes on its page's colours and font.

A chart is transparent, as wide as it is let, and has an alternative text. The same input gives the
same bytes. Colours are of the Okabe-Ito palette, told apart by colour-blind people; the page says
through its CSS variables how dark or light each is, so that a chart can be read in a dark page too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, RULE = "#1c2127", "#5b6570", "#d9dee3"
BLUE, GREEN, VERMILION, PURPLE = "#0072b2", "#009e73", "#d55e00", "#cc79a7"
#: The page's CSS variable for each colour.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    BLUE: "--blue",
    GREEN: "--green",
    VERMILION: "--vermilion",
    PURPLE: "--purple",
}
#: The confusion matrix has white letters on its blue: it stays as it is in a dark page too.
CELL = "#0072b3"

#: Inches; a page shows them at about twice the size, the letters with them.
WIDE, HALF = (7.4, 2.9), (3.6, 2.5)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
}

Points = Sequence[tuple[float, float]]


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Markup:
    """A chart of that size in inches, painted by ``paint``.

    alt: the text for those who cannot see it. name: goes into the ids within the SVG, so
    that those of one page's charts differ.
    """
    buffer = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a person's matplotlibrc says
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), alt)


def panel(figure: Figure, x: str, y: str, *place: int) -> Axes:
    """Axes with a light grid. place: as of ``Figure.add_subplot``."""
    axes = figure.add_subplot(*place)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y")
    if x in {"epoch", "trial"}:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    return axes


def legend(axes: Axes, columns: int) -> None:
    """Above the axes, where it covers nothing."""
    if axes.lines:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
            handlelength=1.6, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip


def star(axes: Axes, points: Points, what: str) -> None:
    """Marks what stands out."""
    for x, y in points:
        label = f"{what}: {y:.4f}"
        axes.plot(x, y, "*", color=VERMILION, ms=9, mew=0, label=label, zorder=5, clip_on=False)


def line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    """A line, or a dot where there is one point only."""
    mark = "o" if len(x) == 1 else ""
    axes.plot(x, y, marker=mark, ms=4, color=colour, label=label)


def xy(points: Points) -> tuple[list[float], list[float]]:
    """Two lists of a list of pairs."""
    return [x for x, _ in points], [y for _, y in points]


def _inline(svg: str, alt: str) -> Markup:
    """The drawing alone: no prolog, no metadata, no size, font and colours of its own."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body).replace("xlink:href=", "href=")
    # Ids that nothing refers to are the same in every drawing.
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    kept = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in kept else "", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"#[0-9a-f]{6}", _variable, body)
    return Markup(f'<svg {box} role="img" aria-label="{escape(alt)}">{body.strip()}')  # noqa: S704


def _variable(match: re.Match[str]) -> str:
    colour = match[0]
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour
