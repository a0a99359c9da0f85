"""The report's charts, as SVG that lies within a page and takes on its colours and its font.

Each function gives a chart that stands for itself: transparent, as wide as it is let, with an
alternative text. The same input gives the same bytes. Colours are of the Okabe-Ito palette,
told apart by colour-blind people; the page says through its CSS variables how dark or light
each is, so that a chart can be read in a dark page as well.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial

from search.trials import State, state_of

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
#: Curves drawn at most of each state: more are neither seen nor light.
MOST_CURVES = 120
#: Bars drawn at most.
MOST_BARS = 15

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

Points = list[tuple[int, float]]


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
        axes = _axes(figure, "trial", "validation Dice")
        _scatter(axes, complete, floor, BLUE, "o", "complete")
        _best_so_far(axes, complete, [t.number for t in known])
        _scatter(axes, pruned, floor, MUTED, "D", "pruned (last reported)")
        if failed:
            edge = [floor] * len(failed)
            axes.plot(failed, edge, "x", color=PURPLE, ms=4, clip_on=False, label="failed")
        _star(axes, [(n, v) for n, v in complete if n == winner], "the winner")
        axes.set_ylim(floor, None if complete or pruned else 1)
        _legend(axes, columns=6)

    alt = (
        f"Validation Dice of {len(complete)} complete and {len(pruned)} pruned trials by number; "
        f"{len(failed)} failed. {_best_text(complete)}"
    )
    return _draw("history", alt, WIDE, paint)


def curves_chart(known: Iterable[FrozenTrial], winner: int | None) -> Markup:
    """Validation Dice by epoch, a curve for each trial; the winner's stands out."""
    by_state: dict[State, list[Points]] = {"complete": [], "pruned": [], "failed": []}
    best: Points = []
    for trial in known:
        reported = _reported(trial)
        if trial.number == winner:
            best = reported
        elif reported and state_of(trial) in by_state:
            by_state[state_of(trial)].append(reported)

    def paint(figure: Figure) -> None:
        axes = _axes(figure, "epoch", "validation Dice")
        _curves(axes, by_state["complete"], BLUE, "-", "", "complete")
        _curves(axes, by_state["pruned"], MUTED, "--", "D", "pruned")
        _curves(axes, by_state["failed"], PURPLE, ":", "x", "failed")
        if best:
            mark = "o" if len(best) == 1 else ""
            axes.plot(*_xy(best), marker=mark, ms=4, color=VERMILION, lw=2, label="the winner")
        _legend(axes, columns=4)

    counted = ", ".join(f"{len(c)} {s}" for s, c in by_state.items() if c) or "none"
    alt = f"Validation Dice by epoch: the winner's curve, and of the other trials {counted}."
    return _draw("curves", alt, WIDE, paint)


def retraining_chart(rows: Sequence[Mapping[str, float]], kept: int) -> Markup:
    """Losses and validation Dice of one training by epoch; kept: the epoch of its weights."""
    epochs = [row["epoch"] for row in rows]

    def paint(figure: Figure) -> None:
        left = _axes(figure, "epoch", "loss", 1, 2, 1)
        for key, label, colour in (
            ("train_loss", "training", GREEN),
            ("val_loss", "validation", BLUE),
        ):
            _line(left, epochs, [row[key] for row in rows], colour, label)
        right = _axes(figure, "epoch", "validation Dice", 1, 2, 2)
        dice = [row["dice"] for row in rows]
        _line(right, epochs, dice, BLUE, "validation")
        at = [(int(e), d) for e, d in zip(epochs, dice, strict=True) if e == kept]
        _star(right, at, f"epoch {kept}")
        for axes in (left, right):
            _legend(axes, columns=2)

    dice_kept = next((row["dice"] for row in rows if row["epoch"] == kept), math.nan)
    alt = (
        f"Losses and validation Dice of the retraining over {len(rows)} epochs; "
        f"the weights are of epoch {kept}, Dice {dice_kept:.4f}."
    )
    return _draw("retraining", alt, WIDE, paint)


def importance_chart(shares: Mapping[str, float]) -> Markup:
    """A bar for each parameter's share, the largest on top; MOST_BARS at most."""
    shown = list(shares.items())[:MOST_BARS]

    def paint(figure: Figure) -> None:
        axes = _axes(figure, "share of the importance", "")
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
    return _draw("importance", alt, (WIDE[0], 0.55 + 0.21 * len(shown)), paint)


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
    return _draw("confusion", f"Confusion matrix; {'; '.join(told)}.", HALF, paint)


def dice_chart(values: Sequence[float]) -> Markup:
    """How many test images have which Dice."""
    low = min(math.floor(min(values) * 20) / 20, 0.95)
    median = float(np.median(values))

    def paint(figure: Figure) -> None:
        axes = _axes(figure, "Dice of the image", "test images")
        axes.hist(values, np.linspace(low, 1, 21).tolist(), color=BLUE, rwidth=0.88)
        axes.axvline(median, color=VERMILION, lw=1.6, label=f"median {median:.4f}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_xlim(low, 1)
        _legend(axes, columns=1)

    alt = f"Histogram of Dice over {len(values)} test images: median {median:.4f}"
    return _draw(
        "dice", f"{alt}, lowest {min(values):.4f}, highest {max(values):.4f}.", HALF, paint
    )


def last_value(trial: FrozenTrial) -> float | None:
    """The last value that a trial reported; None if there is none."""
    return trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None


def _points(
    known: Iterable[FrozenTrial], state: State, value: Callable[[FrozenTrial], float | None]
) -> Points:
    found = ((t.number, value(t)) for t in known if state_of(t) == state)
    return [(n, v) for n, v in found if v is not None and math.isfinite(v)]


def _reported(trial: FrozenTrial) -> Points:
    return [(e, v) for e, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]


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
    axes.plot(*_xy(seen), marker, color=colour, ms=size, mew=0, label=label)
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


def _star(axes: Axes, points: Points, what: str) -> None:
    for x, y in points:
        label = f"{what}: {y:.4f}"
        axes.plot(x, y, "*", color=VERMILION, ms=9, mew=0, label=label, zorder=5, clip_on=False)


def _curves(
    axes: Axes, curves: list[Points], colour: str, dashes: str, marker: str, label: str
) -> None:
    step = max(1, math.ceil(len(curves) / MOST_CURVES))
    for i, curve in enumerate(curves[::step]):
        end = marker or ("o" if len(curve) == 1 else "")
        axes.plot(
            *_xy(curve), dashes, color=colour, alpha=0.5, lw=0.8, marker=end, ms=3, mew=0.8,
            markevery=[-1], label="" if i else label,
        )  # fmt: skip


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str) -> None:
    mark = "o" if len(x) == 1 else ""
    axes.plot(x, y, marker=mark, ms=4, color=colour, label=label)


def _cell(axes: Axes, x: int, y: int, share: float, of_row: float) -> None:
    axes.add_patch(Rectangle((x + 0.015, y + 0.02), 0.97, 0.96, fc=CELL, alpha=0.06 + 0.9 * of_row))
    colour = "#ffffff" if of_row > 0.5 else INK
    middle: dict[str, Any] = {"color": colour, "ha": "center"}
    axes.text(x + 0.5, y + 0.48, f"{100 * share:.2f}%", fontsize=11, **middle)
    axes.text(x + 0.5, y + 0.7, f"{100 * of_row:.1f}% of the row", fontsize=7, **middle)


def _best_text(complete: Points) -> str:
    if not complete:
        return "None is complete."
    number, value = max(complete, key=lambda point: (point[1], -point[0]))
    return f"The best is trial {number} with {value:.4f}."


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _axes(figure: Figure, x: str, y: str, *place: int) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y")
    if x in {"epoch", "trial"}:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    return axes


def _legend(axes: Axes, columns: int) -> None:
    if axes.lines:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
            handlelength=1.6, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip


def _draw(
    name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None]
) -> Markup:
    """name: goes into the ids within the SVG, so that those of one page's charts differ."""
    buffer = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a person's matplotlibrc says
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), alt)


def _inline(svg: str, alt: str) -> Markup:
    """The drawing alone: no prolog, no metadata, no size, font and colours of its own."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body).replace("xlink:href=", "href=")
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"#[0-9a-f]{6}", _variable, body)
    return Markup(f'<svg {box} role="img" aria-label="{escape(alt)}">{body.strip()}')  # noqa: S704


def _variable(match: re.Match[str]) -> str:
    colour = match[0]
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour
