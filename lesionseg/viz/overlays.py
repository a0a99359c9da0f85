"""Images with the true and the predicted outline.

The colours are of the Okabe-Ito palette, which colour-blind people can distinguish: sky blue for
the true outline, orange for the predicted one.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from lesionseg.data.cache import Cache
from lesionseg.data.image_io import Pixels, read_image
from lesionseg.data.pairs import Record
from lesionseg.inference.evaluate import Evaluation, evaluate
from lesionseg.inference.postprocess import Mask
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.runtime.files import file_stem

TRUE_COLOUR = (86, 180, 233)
PREDICTED_COLOUR = (230, 159, 0)

#: Maximum height and width of an overlay in pixels.
OVERLAY_SIDE_PX = 480
IMAGES_PER_KIND = 3


def draw_outlines(image: Pixels, truth: Mask, predicted: Mask) -> Pixels:
    """Draw both outlines on an image, uint8 [H, W, 3], reduced to OVERLAY_SIDE_PX if it is larger.

    The masks, bool, must have the same aspect ratio as the image.
    """
    size = _overlay_size(image.shape)
    canvas: Pixels = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    for mask, colour in ((truth, TRUE_COLOUR), (predicted, PREDICTED_COLOUR)):
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, thickness=2, lineType=cv2.LINE_AA)
    return canvas


def shrink_mask(mask: Mask) -> Mask:
    """Resize a mask, bool [H, W], to the size of its overlay."""
    size = _overlay_size(mask.shape)
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, dtype=bool)


def select_examples(dice: NDArray[np.float64]) -> dict[str, list[int]]:
    """Select the best, median and worst images by their Dice, [N], each at most once."""
    order = [int(i) for i in np.argsort(-dice, kind="stable")]
    middle = max(0, len(order) // 2 - IMAGES_PER_KIND // 2)
    best, worst = order[:IMAGES_PER_KIND], order[-IMAGES_PER_KIND:][::-1]
    median = order[middle : middle + IMAGES_PER_KIND]
    return {
        "best": best,
        "median": [i for i in median if i not in {*best, *worst}],
        "worst": [i for i in worst if i not in best],
    }


def write_overlays(
    model: nn.Module,
    cache: Cache,
    evaluation: Evaluation,
    folder: Path,
    device: torch.device,
    inference: Inference = DEFAULT_INFERENCE,
    amp: str = "auto",
) -> tuple[tuple[str, str], ...]:
    """Write the overlays of the best, median and worst images of an evaluation of the model.

    Returns:
        Kind and file name of each overlay: ("best", "best_1_NAME.png") and so on, where NAME is the
        ``file_stem`` of the image's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples = [
        (kind, rank, evaluation.records[i])
        for kind, members in select_examples(evaluation.scores["dice"]).items()
        for rank, i in enumerate(members, start=1)
    ]
    written: list[tuple[str, str]] = []

    def write(record: Record, predicted: Mask, truth: Mask) -> None:
        kind, rank, _ = examples[len(written)]
        overlay = draw_outlines(np.asarray(read_image(record.image)), truth, predicted)
        path = folder / f"{kind}_{rank}_{file_stem(record.name)}.png"
        Image.fromarray(overlay).save(path)
        written.append((kind, path.name))

    records = [record for _, _, record in examples]
    evaluate(model, cache, records, device=device, inference=inference, amp=amp, on_image=write)
    return tuple(written)


def _overlay_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the width and height of an overlay in pixels."""
    scale = min(1.0, OVERLAY_SIDE_PX / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))
