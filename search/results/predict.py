"""predict: a final model on any pictures; masks, overlays and a table in a folder of their own."""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lesionseg import metrics
from lesionseg.data.image_io import read_mask
from lesionseg.errors import InputError
from lesionseg.inference.batch_predict import Taken, stream
from lesionseg.inference.mask_stats import Mask, Probability
from lesionseg.inference.predictor import Prediction, Segmenter, load
from lesionseg.viz.overlays import OVERLAY_SIDE, overlay
from search.errors import JobFailed
from search.results.image_paths import unique_stems
from search.storage.study_dir import check_writable, create_folder
from search.trial_process.resources import count_cores

#: What lies in the folder.
TABLE, MASKS, OVERLAYS = "predictions.csv", "masks", "overlays"

#: The columns of the table; ``dice`` besides where there are true masks.
COLUMNS = (
    "file",
    "mask",
    "width",
    "height",
    "area",
    "share",
    "centre_x",
    "centre_y",
    "confidence",
    "touches_border",
    "nothing_found",
    "several",
)

#: Quality of the overlays, which are JPEG.
QUALITY = 90

NO_MASK: Mask = np.zeros((1, 1), np.bool_)


@dataclass
class Summary:
    """What was done: images predicted, those of them without a lesion, those that could not be
    used, and the Dice of each that has a true mask."""

    images: int = 0
    empty: int = 0
    broken: int = 0
    dice: list[float] = field(default_factory=list)

    @property
    def mean_dice(self) -> float | None:
        """The mean over images; None without a true mask."""
        return math.fsum(self.dice) / len(self.dice) if self.dice else None


def load_final_model(run: str, device: str = "auto", threads: int | None = None) -> tuple[Segmenter, int]:
    """A final model, and how many threads are to read and finish beside it.

    run: a path, or a study's name under ``runs/``. threads: of the network, all cores without.
    Raises InputError as ``lesionseg.load``.
    """
    below = Path("runs") / run
    segmenter = load(below if below.is_dir() and not Path(run).exists() else run, device)
    own = threads or count_cores()
    torch.set_num_threads(own)
    return segmenter, max(2, own)


def predict_files(
    segmenter: Segmenter,
    images: Sequence[Path],
    out: Path,
    *,
    masks: Mapping[Path, Path] | None = None,
    overlays: bool = True,
    batch_size: int | None = None,
    threads: int = 2,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_broken: Callable[[InputError], None] = lambda error: None,
) -> Summary:
    """Predicts images and writes the folder ``out``, whole or not at all.

    Args:
        segmenter: the model.
        images: files.
        out: a new or an empty folder.
        masks: true masks, of all images or of some: their Dice is in the table then.
        overlays: whether the outlines are drawn on the images as well.
        batch_size, threads: as ``lesionseg.inference.batch_predict.stream`` takes them.
        on_image: called after each image with those done and those there are.
        on_broken: called for each image that cannot be used; it is left out.

    Raises:
        InputError: ``out`` holds anything, or cannot be written.
        Failed: no image could be used, or writing broke off.
    """
    summary = Summary()
    names = dict(zip(images, unique_stems(images), strict=True))
    with _whole(out) as folder:
        artist = _Artist(segmenter, folder, names, masks, overlays)
        finished = stream(
            segmenter,
            images,
            artist.use,
            view=OVERLAY_SIDE if overlays else 0,
            batch_size=batch_size,
            threads=threads,
        )
        columns = [*COLUMNS, *(["dice"] if masks is not None else [])]
        # Names of files are bytes to the system, and not always text.
        # Closed before the folder goes: its threads would write there after it was emptied.
        with (
            closing(finished) as rows,
            (folder / TABLE).open(
                "w", newline="", encoding="utf-8", errors="surrogateescape"
            ) as file,
        ):
            table = csv.DictWriter(file, columns)
            table.writeheader()
            for done, row in enumerate(rows, 1):
                if isinstance(row, InputError):
                    summary.broken += 1
                    on_broken(row)
                else:
                    table.writerow(row)
                    _count(summary, row)
                on_image(done, len(images))
        if not summary.images:
            raise JobFailed(f"predict: none of {len(images)} images could be used")
    return summary


def check_output_folder(out: Path) -> None:
    """InputError where a folder is not new or empty, or could not be written."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; give a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty; give a new folder")
    check_writable(out)
    partial = _partial(out)
    if partial.exists():
        raise InputError(
            f"--out: {partial} is there: another process writes {out.name}, or one was cut off; "
            f"delete it if none does"
        )


def print_prediction_summary(summary: Summary, out: Path) -> None:
    """Tells what was done; Failed at the end where images could not be used."""
    print(
        f"{summary.images} images in {out}: {MASKS}/ and {TABLE}; {summary.empty} without a lesion"
    )
    if summary.mean_dice is not None:
        print(f"Dice {summary.mean_dice:.4f}, the mean over {len(summary.dice)} images")
    if summary.broken:
        whole = summary.images + summary.broken
        raise JobFailed(f"predict: {summary.broken} of {whole} images could not be used, see above")


class _Artist:
    """Writes the files of one image and tells its row; used by several threads at once."""

    def __init__(
        self,
        segmenter: Segmenter,
        folder: Path,
        names: Mapping[Path, str],
        masks: Mapping[Path, Path] | None,
        overlays: bool,
    ) -> None:
        self.segmenter, self.folder, self.names = segmenter, folder, names
        self.masks = masks or {}
        (folder / MASKS).mkdir()
        if overlays:
            (folder / OVERLAYS).mkdir()

    def use(self, taken: Taken, probability: Probability) -> dict[str, Any]:
        """One image: its mask, its overlay and its row."""
        truth = self._truth(taken)
        found = self.segmenter.finish(taken.small, probability, taken.shape)
        name = self.names[taken.path]
        file = f"{MASKS}/{name}.png"
        Image.fromarray(found.mask.view(np.uint8) * np.uint8(255)).save(self.folder / file)
        if taken.view is not None:
            drawn = overlay(taken.view, NO_MASK if truth is None else truth, found.mask)
            Image.fromarray(drawn).save(self.folder / OVERLAYS / f"{name}.jpg", quality=QUALITY)
        return _row(taken, file, found) | ({} if truth is None else {"dice": _dice(found, truth)})

    def _truth(self, taken: Taken) -> Mask | None:
        path = self.masks.get(taken.path)
        if path is None:
            return None
        truth, _ = read_mask(path)
        if truth.shape != taken.shape:
            (height, width), (h, w) = truth.shape, taken.shape
            raise InputError(
                f"{path}: the mask has {width}x{height} pixels, its image {w}x{h}; they must be "
                f"of one size"
            )
        return truth


def _row(taken: Taken, file: str, found: Prediction) -> dict[str, Any]:
    x, y = found.centre or ("", "")
    return {
        "file": str(taken.path),
        "mask": file,
        "width": taken.shape[1],
        "height": taken.shape[0],
        "area": found.area,
        "share": found.share,
        "centre_x": x,
        "centre_y": y,
        "confidence": "" if found.confidence is None else found.confidence,
        "touches_border": int(found.touches_border),
        "nothing_found": int(found.nothing_found),
        "several": int(found.several),
    }


def _dice(found: Prediction, truth: Mask) -> float:
    counts = metrics.count(torch.from_numpy(found.mask[None]), torch.from_numpy(truth[None]))
    return float(metrics.score(counts.numpy())["dice"][0])


def _count(summary: Summary, row: Mapping[str, Any]) -> None:
    summary.images += 1
    summary.empty += row["nothing_found"]
    if "dice" in row:
        summary.dice.append(row["dice"])


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write to, which is called ``out`` when all went well and is gone when not."""
    check_output_folder(out)
    create_folder(out.absolute().parent)
    partial = _partial(out)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise JobFailed(f"predict: {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(out: Path) -> Path:
    whole = out.absolute()
    return whole.with_name(f".{whole.name}.partial")
