"""Learning curves of a trial as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: Colours of the Okabe-Ito palette, which colour-blind people can distinguish.
BLUE, GREEN, ORANGE, GREY = "#0072b2", "#009e73", "#e69f00", "#5b6570"
SIZE_INCHES, DPI = (7.2, 2.6), 110

#: Title of each panel, and key, label and colour of its lines.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("loss", (("train_loss", "training", GREEN), ("val_loss", "validation", BLUE))),
    ("validation", (("dice", "Dice", BLUE), ("jaccard", "Jaccard", ORANGE))),
    ("learning rate", (("lr", "", GREY),)),
)


def draw_curves(history: str) -> bytes:
    """Draw losses, metrics and learning rate by epoch.

    Args:
        history: content of a trial's history.csv.

    Returns:
        A PNG file.

    Raises:
        ValueError: ``history`` is not a table of epochs.
    """
    rows = [
        {key: float(value) for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(history), strict=True)
        if None not in row and None not in row.values()
    ]
    if not rows or "epoch" not in rows[0]:
        raise ValueError("not a table of epochs")
    with mpl.rc_context():
        mpl.rcdefaults()  # independent of a user's matplotlibrc
        mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        for position, (title, lines) in enumerate(_PANELS, 1):
            axes = figure.add_subplot(1, len(_PANELS), position)
            axes.set_title(title, fontsize=8, loc="left", color=GREY)
            axes.set_xlabel("epoch", color=GREY)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.grid(axis="y", color="#d9dee3", linewidth=0.5)
            for key, label, colour in lines:
                _draw_line(axes, rows, key, label, colour)
            if any(label for _, label, _ in lines):
                axes.legend(frameon=False, fontsize=7)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    return stream.getvalue()


def _draw_line(
    axes: Axes, rows: Sequence[Mapping[str, float]], key: str, label: str, colour: str
) -> None:
    """Draw one line per fold; those after the first are thin and pale."""
    for i, fold in enumerate(sorted({row.get("fold", 1.0) for row in rows})):
        points = [
            (row["epoch"], row[key])
            for row in rows
            if row.get("fold", 1.0) == fold and math.isfinite(row.get(key, math.nan))
        ]
        marker = "o" if len(points) == 1 else ""
        axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, ms=4,
                  color=colour, lw=0.8 if i else 1.3, alpha=0.5 if i else 1.0,
                  label="" if i else label)  # fmt: skip
