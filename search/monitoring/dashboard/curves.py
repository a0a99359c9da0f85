"""A trial's learning curves as a picture, drawn from its history when somebody looks at it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: Of the Okabe-Ito palette, told apart by colour-blind people.
BLUE, GREEN, ORANGE, GREY = "#0072b2", "#009e73", "#e69f00", "#5b6570"
#: Inches, and dots in each.
SIZE, DPI = (7.2, 2.6), 110

_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("loss", (("train_loss", "training", GREEN), ("val_loss", "validation", BLUE))),
    ("validation", (("dice", "Dice", BLUE), ("jaccard", "Jaccard", ORANGE))),
    ("learning rate", (("lr", "", GREY),)),
)


def draw_curves(history: str) -> bytes:
    """The picture, as PNG. history: the text of a trial's history.csv.

    ValueError where that is no table of epochs.
    """
    rows = _numbers(history)
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a person's matplotlibrc says
        mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        for place, (title, lines) in enumerate(_PANELS, 1):
            axes = figure.add_subplot(1, len(_PANELS), place)
            axes.set_title(title, fontsize=8, loc="left", color=GREY)
            axes.set_xlabel("epoch", color=GREY)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.grid(axis="y", color="#d9dee3", linewidth=0.5)
            for key, label, colour in lines:
                _line(axes, rows, key, label, colour)
            if any(label for _, label, _ in lines):
                axes.legend(frameon=False, fontsize=7)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    return stream.getvalue()


def _numbers(history: str) -> list[dict[str, float]]:
    rows = [
        {key: float(value) for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(history), strict=True)
        if None not in row and None not in row.values()
    ]
    if not rows or "epoch" not in rows[0]:
        raise ValueError("no table of epochs")
    return rows


def _line(
    axes: Axes, rows: Sequence[Mapping[str, float]], key: str, label: str, colour: str
) -> None:
    """A line for each fold where there are several, the first one's stronger than the others."""
    for place, fold in enumerate(sorted({row.get("fold", 1.0) for row in rows})):
        mine = [row for row in rows if row.get("fold", 1.0) == fold]
        points = [(row["epoch"], row[key]) for row in mine if math.isfinite(row.get(key, math.nan))]
        mark = "o" if len(points) == 1 else ""
        axes.plot([x for x, _ in points], [y for _, y in points], marker=mark, ms=4, color=colour,
                  lw=0.8 if place else 1.3, alpha=0.5 if place else 1.0,
                  label="" if place else label)  # fmt: skip
