"""Figures of the baselines: Dice against training time, and predicted outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lesionseg.data.image_io import read_image, read_mask
from lesionseg.data.pairs import Record
from lesionseg.viz.overlays import draw_outlines, shrink_mask
from search.results.baseline_table import BaselineResult
from search.spec import baselines

#: Colour (Okabe-Ito palette) and marker of each source; sources differ in both.
STYLES = {
    "A": ("#0072b2", "o"),
    "B": ("#e69f00", "s"),
    "C": ("#009e73", "^"),
    "D": ("#d55e00", "D"),
    "E": ("#cc79a7", "v"),
}
#: Minimum distances of two labels, in points: labels that are closer than both would overlap.
LABEL_HEIGHT, LABEL_WIDTH = 9.0, 120.0
#: Inches: size of an image in the grid of outlines, and width of the names to its left.
IMAGE_SIZE, NAME_WIDTH = (1.45, 1.15), 2.2


def plot_dice_vs_time(results: Sequence[BaselineResult], path: Path) -> None:
    """Plot the mean test Dice with its 95% interval against training time."""
    figure = Figure(figsize=(9.5, 6.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    points = []
    legend = {}
    for result in sorted((r for r in results if r.is_tested), key=lambda r: r.means["dice"]):
        source = baselines.get_baseline(result.baseline).source
        colour, marker = STYLES[source]
        seconds, dice = result.costs["train_seconds"], result.means["dice"]
        low, high = result.ci95["dice"]
        errors = [[max(0.0, dice - low)], [max(0.0, high - dice)]]
        legend[f"source {source}"] = axes.errorbar(
            [seconds], [dice], errors, fmt=marker, color=colour, elinewidth=0.8, alpha=0.9
        )
        points.append((result.baseline, seconds, dice))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="training time in seconds (logarithmic)", ylabel="mean test Dice, 95% interval")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(*zip(*((legend[s], s) for s in sorted(legend)), strict=True), frameon=False,
                loc="lower right", fontsize=8)  # fmt: skip
    figure.draw_without_rendering()
    _label_points(axes, points)
    figure.savefig(path)


def plot_outlines(
    results: Sequence[BaselineResult], records: Sequence[Record], folder: Path, path: Path
) -> None:
    """Plot predicted outlines (orange) and true ones (sky blue): baselines by images.

    Args:
        results: one row of the grid each; only the first training is shown.
        records: one column each.
        folder: contains the predicted masks ``<trial>/<name>.png``.
        path: the file to write.
    """
    tested = [result for result in results if result.is_tested]
    width = IMAGE_SIZE[0] * len(records) + NAME_WIDTH
    height = IMAGE_SIZE[1] * len(tested) + 0.4
    figure = Figure(figsize=(width, height), dpi=100)
    grid = figure.subplots(len(tested), len(records), squeeze=False)
    for record, column in zip(records, grid.T, strict=True):
        image = np.asarray(read_image(record.image))
        truth = shrink_mask(read_mask(record.mask)[0])
        column[0].set_title(record.name, fontsize=7)
        for result, axes in zip(tested, column, strict=True):
            mask = np.asarray(Image.open(folder / str(result.trials[0]) / f"{record.name}.png")) > 0
            axes.imshow(draw_outlines(image, truth, mask))
            axes.set_axis_off()
    for result, axes in zip(tested, grid[:, 0], strict=True):
        axes.text(-0.05, 0.5, f"{result.baseline}\n{result.means['dice']:.3f}", fontsize=7,
                  ha="right", va="center", transform=axes.transAxes)  # fmt: skip
    figure.subplots_adjust(NAME_WIDTH / width, 0.01, 0.99, 1 - 0.3 / height, 0.03, 0.03)
    figure.savefig(path)


def _label_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write the names beside the points; move those up that would overlap with another one."""
    placed: list[tuple[float, float]] = []
    for name, seconds, dice in points:
        x, y = axes.transData.transform((seconds, dice)) * 72.0 / axes.figure.dpi
        label_y = y
        while any(abs(label_y - b) < LABEL_HEIGHT and abs(x - a) < LABEL_WIDTH for a, b in placed):
            label_y += 1.0
        placed.append((x, label_y))
        line = {"arrowstyle": "-", "lw": 0.3, "color": "#888888"}
        axes.annotate(name, (seconds, dice), (6, label_y - y), textcoords="offset points",
                      fontsize=7, va="center",
                      arrowprops=line if label_y - y > LABEL_HEIGHT else None)  # fmt: skip
