"""Files of a prediction: masks, overlays and a table in one folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lesionseg import metrics
from lesionseg.data.image_io import read_mask
from lesionseg.errors import InputError
from lesionseg.inference.batch_predict import LoadedImage
from lesionseg.inference.mask_stats import Mask, Probability
from lesionseg.inference.predictor import Prediction, Segmenter
from lesionseg.viz.overlays import draw_outlines
from search.results.image_paths import unique_stems

#: Names in the folder.
TABLE, MASKS, OVERLAYS = "predictions.csv", "masks", "overlays"
#: Columns of the table; ``dice`` follows if there are true masks.
COLUMNS = (
    "file", "mask", "width", "height", "area", "share", "centre_x", "centre_y", "confidence",
    "touches_border", "is_empty", "has_several_lesions",
)  # fmt: skip
JPEG_QUALITY = 90


class PredictionWriter:
    """Writes the mask and the overlay of each image and returns its row; thread-safe.

    Args:
        segmenter: the model.
        folder: an existing folder.
        images: all images that will be written; they determine the names of the files.
        true_masks: masks by image, for Dice and overlays.
        overlays: whether to write overlays.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        folder: Path,
        images: Sequence[Path],
        true_masks: Mapping[Path, Path] | None,
        *,
        overlays: bool,
    ) -> None:
        self.segmenter, self.folder = segmenter, folder
        self.true_masks = true_masks or {}
        self.columns = [*COLUMNS, *(["dice"] if true_masks is not None else [])]
        self._names = dict(zip(images, unique_stems(images), strict=True))
        (folder / MASKS).mkdir()
        if overlays:
            (folder / OVERLAYS).mkdir()

    def write_image(self, picture: LoadedImage, probability: Probability) -> dict[str, Any]:
        """Write one image's mask and, if the picture has a view, its overlay; return its row."""
        truth = self._read_true_mask(picture)
        prediction = self.segmenter.build_prediction(picture.resized, probability, picture.shape)
        name = self._names[picture.path]
        mask_file = f"{MASKS}/{name}.png"
        pixels = prediction.mask.view(np.uint8) * np.uint8(255)
        Image.fromarray(pixels).save(self.folder / mask_file)
        if picture.preview is not None:
            outline = np.zeros((1, 1), np.bool_) if truth is None else truth
            image = Image.fromarray(draw_outlines(picture.preview, outline, prediction.mask))
            image.save(self.folder / OVERLAYS / f"{name}.jpg", quality=JPEG_QUALITY)
        row = _table_row(picture, mask_file, prediction)
        return row if truth is None else row | {"dice": _dice(prediction.mask, truth)}

    @contextmanager
    def open_table(self) -> Iterator[csv.DictWriter[str]]:
        """Open the table and write its header."""
        # Paths may contain bytes that are not UTF-8.
        path = self.folder / TABLE
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            yield writer

    def _read_true_mask(self, picture: LoadedImage) -> Mask | None:
        path = self.true_masks.get(picture.path)
        if path is None:
            return None
        truth, _ = read_mask(path)
        if truth.shape != picture.shape:
            (height, width), (image_height, image_width) = truth.shape, picture.shape
            raise InputError(
                f"{path}: the mask has {width}x{height} pixels, its image "
                f"{image_width}x{image_height}; both must have the same size"
            )
        return truth


def _table_row(picture: LoadedImage, mask_file: str, prediction: Prediction) -> dict[str, Any]:
    x, y = prediction.centre or ("", "")
    return {
        "file": str(picture.path),
        "mask": mask_file,
        "width": picture.shape[1],
        "height": picture.shape[0],
        "area": prediction.area,
        "share": prediction.share,
        "centre_x": x,
        "centre_y": y,
        "confidence": "" if prediction.confidence is None else prediction.confidence,
        "touches_border": int(prediction.touches_border),
        "is_empty": int(prediction.is_empty),
        "has_several_lesions": int(prediction.has_several_lesions),
    }


def _dice(mask: Mask, truth: Mask) -> float:
    counts = metrics.count_pixels(torch.from_numpy(mask[None]), torch.from_numpy(truth[None]))
    return float(metrics.score_images(counts.numpy())["dice"][0])
