"""Prediction with a final model: masks, overlays and a table in a new folder."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from lesionseg import metrics
from lesionseg.data.image_io import read_mask
from lesionseg.errors import InputError
from lesionseg.inference.batch_predict import LoadedImage, predict_files
from lesionseg.inference.mask_stats import Mask, Probability
from lesionseg.inference.predictor import Segmenter, load
from lesionseg.viz.overlays import OVERLAY_SIDE_PX, draw_outlines
from search.errors import JobFailed
from search.results.image_paths import unique_stems
from search.storage.study_dir import check_writable, create_folder
from search.trial_process.resources import count_cores

#: Names in the folder.
TABLE, MASKS, OVERLAYS = "predictions.csv", "masks", "overlays"
#: Columns of the table; ``dice`` follows if there are true masks.
COLUMNS = (
    "file", "mask", "width", "height", "area", "share", "centre_x", "centre_y", "confidence",
    "touches_border", "is_empty", "has_several_lesions",
)  # fmt: skip
JPEG_QUALITY = 90


@dataclass
class PredictionSummary:
    """Counts of predicted images, of those without a lesion, and of unusable ones.

    ``dice``: of each image with a true mask.
    """

    images: int = 0
    empty: int = 0
    unusable: int = 0
    dice: list[float] = field(default_factory=list)

    @property
    def mean_dice(self) -> float | None:
        """The mean over images; None without a true mask."""
        return fmean(self.dice) if self.dice else None


def load_final_model(
    run: str, device: str = "auto", threads: int | None = None
) -> tuple[Segmenter, int]:
    """Load a final model and set the number of threads of torch.

    Args:
        run: a path, or the name of a study under ``runs/``.
        device: see ``lesionseg.load``, also for the errors.
        threads: threads of the network; all cores by default.

    Returns:
        The model, and the number of threads for reading and writing images.
    """
    folder = Path("runs") / run
    segmenter = load(folder if folder.is_dir() and not Path(run).exists() else run, device)
    threads = threads or count_cores()
    torch.set_num_threads(threads)
    return segmenter, max(2, threads)


def write_predictions(
    segmenter: Segmenter,
    images: Sequence[Path],
    out: Path,
    *,
    masks: Mapping[Path, Path] | None = None,
    overlays: bool = True,
    batch_size: int | None = None,
    threads: int = 2,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_error: Callable[[InputError], None] = lambda error: None,
) -> PredictionSummary:
    """Predict images and write the folder ``out``; after an error there is no folder.

    Args:
        segmenter: the model.
        images: files.
        out: a new or empty folder.
        masks: true masks by image; the table then contains Dice.
        overlays: whether to write overlays.
        batch_size: images per batch; see ``lesionseg.inference.batch_predict.predict_files``.
        threads: threads for reading and writing images.
        on_image: called after each image with the number of finished and of all images.
        on_error: called with the error of each unusable image, which is left out.

    Raises:
        InputError: ``out`` is not empty or not writable.
        JobFailed: no image is usable, or writing failed.
    """
    summary = PredictionSummary()
    columns = [*COLUMNS, *(["dice"] if masks is not None else [])]
    names = dict(zip(images, unique_stems(images), strict=True))
    with _atomic_folder(out) as folder:
        for name in (MASKS, OVERLAYS) if overlays else (MASKS,):
            (folder / name).mkdir()
        rows = predict_files(
            segmenter,
            images,
            partial(_write_image, segmenter, folder, names, masks or {}),
            preview_px=OVERLAY_SIDE_PX if overlays else 0,
            batch_size=batch_size,
            threads=threads,
        )
        # Paths may contain bytes that are not UTF-8.
        with (
            (folder / TABLE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as f,
            closing(rows),  # waits for the threads, which write to the folder
        ):
            table = csv.DictWriter(f, columns)
            table.writeheader()
            for done, row in enumerate(rows, 1):
                if isinstance(row, InputError):
                    summary.unusable += 1
                    on_error(row)
                else:
                    table.writerow(row)
                    summary.images += 1
                    summary.empty += row["is_empty"]
                    summary.dice += [row["dice"]] if "dice" in row else []
                on_image(done, len(images))
        if not summary.images:
            raise JobFailed(f"predict: none of {len(images)} images is usable")
    return summary


def check_output_folder(out: Path) -> None:
    """Raise InputError if a folder is neither new nor empty, or is not writable."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; give a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty; give a new folder")
    check_writable(out)
    partial = _partial_folder(out)
    if partial.exists():
        raise InputError(
            f"--out: {partial} exists: another process is writing {out.name}, or one was killed; "
            f"in the latter case delete it"
        )


def _write_image(
    segmenter: Segmenter,
    folder: Path,
    names: Mapping[Path, str],
    true_masks: Mapping[Path, Path],
    picture: LoadedImage,
    probability: Probability,
) -> dict[str, Any]:
    """Write an image's mask and, if it has a preview, its overlay; return its row."""
    truth = _read_true_mask(true_masks.get(picture.path), picture.shape)
    prediction = segmenter.build_prediction(picture.resized, probability, picture.shape)
    name, mask = names[picture.path], prediction.mask
    mask_file = f"{MASKS}/{name}.png"
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(folder / mask_file)
    if picture.preview is not None:
        outline = np.zeros((1, 1), np.bool_) if truth is None else truth
        overlay = Image.fromarray(draw_outlines(picture.preview, outline, mask))
        overlay.save(folder / OVERLAYS / f"{name}.jpg", quality=JPEG_QUALITY)
    height, width = picture.shape
    cells = (
        picture.path, mask_file, width, height, prediction.area, prediction.share,
        *(prediction.centre or ("", "")),
        "" if prediction.confidence is None else prediction.confidence,
        int(prediction.touches_border), int(prediction.is_empty),
        int(prediction.has_several_lesions),
    )  # fmt: skip
    row = dict(zip(COLUMNS, cells, strict=True))
    if truth is not None:
        counts = metrics.count_pixels(torch.from_numpy(mask[None]), torch.from_numpy(truth[None]))
        row["dice"] = float(metrics.score_images(counts.numpy())["dice"][0])
    return row


def _read_true_mask(path: Path | None, shape: tuple[int, int]) -> Mask | None:
    if path is None:
        return None
    truth, _ = read_mask(path)
    if truth.shape != shape:
        (height, width), (image_height, image_width) = truth.shape, shape
        raise InputError(
            f"{path}: the mask has {width}x{height} pixels, its image "
            f"{image_width}x{image_height}; both must have the same size"
        )
    return truth


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to ``out`` at the end, and deleted after an error."""
    check_output_folder(out)
    create_folder(out.absolute().parent)
    partial = _partial_folder(out)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise JobFailed(f"predict: {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial_folder(out: Path) -> Path:
    return out.absolute().with_name(f".{out.absolute().name}.partial")
