"""Prediction with a final model: masks, overlays and a table in a new folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lesionseg.data.mask_io import read_mask
from lesionseg.data.pair_io import load_pair
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError
from lesionseg.inference.batch_predict import LoadedImage, predict_files
from lesionseg.inference.ensemble import Ensemble
from lesionseg.inference.postprocess import Mask, Probability
from lesionseg.inference.predictor import FILE, FOLDER, Segmenter, load
from lesionseg.inference.tta import NetworkOutput
from lesionseg.metrics.overlap import dice_score
from lesionseg.runtime.files import atomic_folder
from lesionseg.viz.overlays import OVERLAY_SIDE_PX, draw_outlines
from search.errors import JobFailed
from search.results.evaluation import write_csv
from search.results.image_paths import unique_stems
from search.storage.study_dir import check_writable, is_study
from search.study.location import find_place
from search.trial_process.resources import count_cores

#: Names in the folder.
TABLE, MASKS, OVERLAYS, UNCERTAINTY = "predictions.csv", "masks", "overlays", "uncertainty"
JPEG_QUALITY = 90
#: Standard deviation of the members' probabilities that is written as 255, the largest possible.
MAX_DEVIATION = 0.5


@dataclass(frozen=True)
class PredictionSummary:
    """Counts of predicted images, of those without a lesion, and of unusable ones.

    ``dice``: of each image with a true mask.
    """

    images: int
    empty: int
    unusable: int
    dice: Sequence[float]


def load_final_model(
    run: str, device: str = "auto", threads: int | None = None
) -> tuple[Segmenter, int]:
    """Load a final model and set the number of threads of torch.

    Args:
        run: a study's path or its name under ``runs/``, its ``final/``, or a model's file.
        device: see ``lesionseg.load``, also for the errors.
        threads: threads of the network; all cores by default.

    Returns:
        The model, and the number of threads for reading and writing images.
    """
    segmenter = load(find_place(run, _may_have_model, "model or study"), device)
    threads = threads or count_cores()
    torch.set_num_threads(threads)
    return segmenter, max(2, threads)


def _may_have_model(path: Path) -> bool:
    return is_study(path) or any(map(os.path.isfile, (path, path / FILE, path / FOLDER / FILE)))


def write_predictions(
    segmenter: Segmenter,
    images: Sequence[Path],
    out: Path,
    *,
    masks: Mapping[Path, Path] | None = None,
    overlays: bool = True,
    uncertainty: bool = False,
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
        uncertainty: whether to write the disagreement of an ensemble's members per pixel.
        batch_size: images per batch; see ``lesionseg.inference.batch_predict.predict_files``.
        threads: threads for reading and writing images.
        on_image: called after each image with the number of finished and of all images.
        on_error: called with the error of each unusable image, which is left out.

    Raises:
        InputError: ``out`` is not empty or not writable, or ``uncertainty`` of a single network.
        JobFailed: no image is usable, or writing failed.
    """
    rows: list[dict[str, Any]] = []
    names = dict(zip(images, unique_stems(images), strict=True))
    if uncertainty and not isinstance(segmenter.model, Ensemble):
        raise InputError(
            "--uncertainty: needs an ensemble, whose members can disagree; the model is a single "
            "network"
        )
    check_output_folder(out)
    with _write_errors_as_job_failed(out), atomic_folder(out.absolute()) as folder:
        for name in (MASKS, *[OVERLAYS] * overlays, *[UNCERTAINTY] * uncertainty):
            (folder / name).mkdir()
        results = predict_files(
            segmenter,
            images,
            partial(_write_image, segmenter, folder, names, masks, uncertainty),
            preview_px=OVERLAY_SIDE_PX if overlays else 0,
            batch_size=batch_size,
            threads=threads,
        )
        with closing(results):  # waits for the threads, which write to the folder
            for done, row in enumerate(results, 1):
                if isinstance(row, InputError):
                    on_error(row)
                else:
                    rows.append(row)
                on_image(done, len(images))
        if not rows:
            raise JobFailed(f"predict: none of {len(images)} images is usable")
        write_csv(folder / TABLE, rows)
    empty = sum(row["is_empty"] for row in rows)
    dice = [row["dice"] for row in rows if row.get("dice", "") != ""]
    return PredictionSummary(len(rows), empty, len(images) - len(rows), dice)


def check_output_folder(out: Path) -> None:
    """Raise InputError if a folder is neither new nor empty, or is not writable."""
    check_writable(out)
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty; give a new folder")


def _write_image(
    segmenter: Segmenter,
    folder: Path,
    names: Mapping[Path, str],
    true_masks: Mapping[Path, Path] | None,
    uncertainty: bool,
    picture: LoadedImage,
    output: NetworkOutput,
) -> dict[str, Any]:
    """Write an image's mask, its overlay if it has a preview, its uncertainty; return its row.

    The row has the column ``disagreement`` if the model is an ensemble, and ``dice`` if there are
    true masks.
    """
    truth = _read_true_mask(picture, (true_masks or {}).get(picture.path))
    prediction = segmenter.build_prediction(picture.resized, output, picture.shape)
    name, mask = names[picture.path], prediction.mask
    mask_file = f"{MASKS}/{name}.png"
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(folder / mask_file)
    if picture.preview is not None:
        outline = np.zeros((1, 1), np.bool_) if truth is None else truth
        overlay = Image.fromarray(draw_outlines(picture.preview, outline, mask))
        overlay.save(folder / OVERLAYS / f"{name}.jpg", quality=JPEG_QUALITY)
    if uncertainty and prediction.uncertainty is not None:
        _to_picture(prediction.uncertainty).save(folder / UNCERTAINTY / f"{name}.png")
    height, width = picture.shape
    x, y = prediction.centre or ("", "")
    row = {
        "file": picture.path,
        "mask": mask_file,
        "width": width,
        "height": height,
        "area": prediction.area,
        "share": prediction.share,
        "centre_x": x,
        "centre_y": y,
        "confidence": "" if prediction.confidence is None else prediction.confidence,
        "touches_border": int(prediction.touches_border),
        "is_empty": int(prediction.is_empty),
        "has_several_lesions": int(prediction.has_several_lesions),
    }
    if prediction.disagreement is not None:
        row["disagreement"] = prediction.disagreement
    if true_masks is not None:
        row["dice"] = "" if truth is None else dice_score(mask, truth)
    return row


def _to_picture(deviation: Probability) -> Image.Image:
    """Return a grey picture of a standard deviation, 255 at MAX_DEVIATION."""
    scaled = np.clip(deviation * (255 / MAX_DEVIATION), 0, 255)
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _read_true_mask(picture: LoadedImage, path: Path | None) -> Mask | None:
    if path is None:
        return None
    truth, _ = read_mask(path)
    if truth.shape == picture.shape:
        return truth
    # The mask may have been drawn on the image as stored.
    return np.asarray(load_pair(Record("", picture.path, path, ""), 1).mask) > 0


@contextmanager
def _write_errors_as_job_failed(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobFailed(f"predict: {out} cannot be written: {error.strerror or error}") from error
