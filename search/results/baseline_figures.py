"""Figures of the baselines: Dice and training time, and predicted outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lesionseg.data.image_io import read_image
from lesionseg.data.pair_io import read_true_mask
from lesionseg.data.pairs import Record, escape_unprintable
from lesionseg.runtime.files import file_stem
from lesionseg.viz.overlays import draw_outlines, shrink_mask
from search.results.baseline_table import BaselineResult
from search.spec import baselines

#: Of the Okabe-Ito palette.
BLUE = "#0072b2"
#: Inches: size of an image in the grid of outlines, and width of the names to its left.
IMAGE_SIZE, NAME_WIDTH = (1.45, 1.15), 2.2
#: Characters of an image's name that fit above it.
TITLE_LENGTH = 26


def plot_dice_vs_time(results: Sequence[BaselineResult], path: Path) -> None:
    """Plot mean test Dice with its 95% interval, and training time; a row per baseline."""
    tested = [result for result in results if result.is_tested]
    figure = Figure(figsize=(9.5, 1 + 0.26 * len(tested)), dpi=150, layout="constrained")
    scores, times = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for y, result in enumerate(tested):
        scores.plot(result.ci95["dice"], (y, y), color=BLUE, lw=1)
        scores.plot(result.means["dice"], y, "o", color=BLUE)
        times.plot(result.costs["train_seconds"], y, "o", color=BLUE)
    sources = [baselines.get_baseline(result.baseline).source for result in tested]
    names = [f"{r.baseline} ({source})" for r, source in zip(tested, sources, strict=True)]
    scores.set_yticks(range(len(names)), names)
    scores.set_ylim(len(tested) - 0.5, -0.5)  # the best one on top
    scores.set_xlabel("mean test Dice, 95% interval")
    times.set(xlabel="training time in seconds (logarithmic)", xscale="log")
    times.xaxis.set_major_formatter("{x:g}")
    for axes in (scores, times):
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def plot_outlines(
    results: Sequence[BaselineResult], records: Sequence[Record], folder: Path, path: Path
) -> None:
    """Plot predicted outlines (orange) and true ones (sky blue): baselines by images.

    Args:
        results: one row of the grid each; only the first training is shown.
        records: one column each.
        folder: contains the predicted masks ``<trial>/<file_stem of the name>.png``.
        path: the file to write.
    """
    tested = [result for result in results if result.is_tested]
    width = IMAGE_SIZE[0] * len(records) + NAME_WIDTH
    height = IMAGE_SIZE[1] * len(tested) + 0.4
    figure = Figure(figsize=(width, height), dpi=100)
    grid = figure.subplots(len(tested), len(records), squeeze=False)
    for record, column in zip(records, grid.T, strict=True):
        image = np.asarray(read_image(record.image))
        truth = shrink_mask(read_true_mask(record))
        title = escape_unprintable(record.name)[:TITLE_LENGTH]
        column[0].set_title(title, fontsize=7, parse_math=False)
        for result, axes in zip(tested, column, strict=True):
            file = folder / str(result.trials[0]) / f"{file_stem(record.name)}.png"
            mask = np.asarray(Image.open(file)) > 0
            axes.imshow(draw_outlines(image, truth, mask))
            axes.set_axis_off()
    for result, axes in zip(tested, grid[:, 0], strict=True):
        axes.text(-0.05, 0.5, f"{result.baseline}\n{result.means['dice']:.3f}", fontsize=7,
                  ha="right", va="center", transform=axes.transAxes)  # fmt: skip
    figure.subplots_adjust(NAME_WIDTH / width, 0.01, 0.99, 1 - 0.3 / height, 0.03, 0.03)
    figure.savefig(path)
