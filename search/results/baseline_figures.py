"""Pictures of the published systems side by side: Dice against training time, and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from PIL import Image

from lesionseg.data.image_io import read_image, read_mask
from lesionseg.data.index import Record
from lesionseg.viz.overlays import overlay, shrunk
from search.results.baseline_table import Row
from search.spec import baselines

#: A colour (Okabe-Ito) and a marker for each source: told apart without colours too.
LOOKS = {
    "A": ("#0072b2", "o"),
    "B": ("#e69f00", "s"),
    "C": ("#009e73", "^"),
    "D": ("#d55e00", "D"),
    "E": ("#cc79a7", "v"),
}
#: Points (1/72 inch) that a label is high and about as wide as: closer ones cover each other.
LABEL_HEIGHT, LABEL_WIDTH = 9.0, 120.0


def dice_vs_time(found: Sequence[Row], path: Path) -> None:
    """Mean test Dice with its 95% interval against seconds of training, a point for a system."""
    shown = [row for row in found if row.tested]
    figure = Figure(figsize=(9.5, 6.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row in shown:
        colour, marker = LOOKS[baselines.baseline(row.baseline).source]
        low, high = row.ci95["dice"]
        dice = row.means["dice"]
        axes.errorbar(
            [row.seconds or 0.0],
            [dice],
            yerr=[[max(0.0, dice - low)], [max(0.0, high - dice)]],
            fmt=marker,
            color=colour,
            elinewidth=0.8,
            alpha=0.9,
        )
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.set_xlabel("seconds of training (logarithmic)")
    axes.set_ylabel("mean test Dice, 95% interval")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    sources = sorted({baselines.baseline(row.baseline).source for row in shown})
    handles = [
        Line2D([], [], color=LOOKS[s][0], marker=LOOKS[s][1], linestyle="", label=f"source {s}")
        for s in sources
    ]
    axes.legend(handles=handles, frameon=False, loc="lower right", fontsize=8)
    figure.draw_without_rendering()
    _label(axes, shown)
    figure.savefig(path)


def _label(axes: Axes, shown: Sequence[Row]) -> None:
    """Names beside the points, moved up or down where they would cover each other."""
    placed: list[tuple[float, float]] = []
    for row in sorted(shown, key=lambda r: r.means["dice"]):
        x, y = axes.transData.transform((row.seconds or 1.0, row.means["dice"]))
        scale = 72.0 / axes.figure.dpi
        x, y = float(x) * scale, float(y) * scale
        text_y = y
        while any(abs(text_y - b) < LABEL_HEIGHT and abs(x - a) < LABEL_WIDTH for a, b in placed):
            text_y += 1.0
        placed.append((x, text_y))
        axes.annotate(
            row.baseline,
            (row.seconds or 1.0, row.means["dice"]),
            xytext=(6, text_y - y),
            textcoords="offset points",
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "#888888"}
            if text_y - y > LABEL_HEIGHT
            else None,
        )


def overlays(found: Sequence[Row], records: Sequence[Record], results: Path, path: Path) -> None:
    """Every system's outline (orange) and the true one (sky blue) on the same images.

    A row for each system, best first; a column for each image. Only its first training is shown.
    """
    shown = [row for row in found if row.tested]
    side = 1.15
    figure = Figure(figsize=(side * len(records) * 1.25 + 2.4, side * len(shown) + 0.4), dpi=100)
    grid = figure.subplots(len(shown), len(records), squeeze=False)
    for column, record in enumerate(records):
        image = np.asarray(read_image(record.image))
        truth = shrunk(read_mask(record.mask)[0])
        for line, row in enumerate(shown):
            mask = np.asarray(Image.open(results / str(row.trials[0]) / f"{record.name}.png")) > 0
            axes = grid[line][column]
            axes.imshow(overlay(image, truth, mask))
            axes.set_axis_off()
            if line == 0:
                axes.set_title(record.name, fontsize=7)
            if column == 0:
                axes.text(
                    -0.05,
                    0.5,
                    f"{row.baseline}\n{row.means['dice']:.3f}",
                    transform=axes.transAxes,
                    ha="right",
                    va="center",
                    fontsize=7,
                )
    figure.subplots_adjust(
        left=2.2 / figure.get_figwidth(),
        right=0.99,
        top=1 - 0.3 / figure.get_figheight(),
        bottom=0.01,
        wspace=0.03,
        hspace=0.03,
    )
    figure.savefig(path)
