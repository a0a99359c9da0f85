"""Pictures that people look at: images with the true and the predicted outline.

Colours are of the Okabe-Ito palette, told apart by colour-blind people; the true outline is
drawn in sky blue, the predicted one in orange.
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
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference

Mask = NDArray[np.bool_]

TRUE_COLOUR = (86, 180, 233)
PREDICTED_COLOUR = (230, 159, 0)

#: The longest side of an overlay in pixels: enough to judge an outline by.
OVERLAY_SIDE = 480
#: Images of each kind.
IMAGES_PER_KIND = 3


def draw_outlines(image: Pixels, truth: Mask, predicted: Mask) -> Pixels:
    """The image [H, W, 3] with both outlines; scaled down to OVERLAY_SIDE if it is larger."""
    size = _overlay_size(image.shape)
    canvas: Pixels = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    for mask, colour in ((truth, TRUE_COLOUR), (predicted, PREDICTED_COLOUR)):
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, thickness=2, lineType=cv2.LINE_AA)
    return canvas


def shrink_mask(mask: Mask) -> Mask:
    """A mask [H, W] at the size that ``draw_outlines`` would draw it at."""
    small = cv2.resize(
        mask.astype(np.uint8), _overlay_size(mask.shape), interpolation=cv2.INTER_NEAREST
    )
    kept: Mask = small.astype(bool)
    return kept


def select_examples(dice: NDArray[np.float64]) -> dict[str, list[int]]:
    """Which images to show: the best, those about the median, and the worst. Each only once."""
    order = [int(i) for i in np.argsort(-dice, kind="stable")]
    middle = max(0, len(order) // 2 - IMAGES_PER_KIND // 2)
    wanted = {
        "best": order[:IMAGES_PER_KIND],
        "worst": order[-IMAGES_PER_KIND:][::-1],
        "median": order[middle : middle + IMAGES_PER_KIND],
    }
    seen: set[int] = set()
    chosen = {}
    for kind, members in wanted.items():
        chosen[kind] = [i for i in members if i not in seen]
        seen |= set(members)
    return {kind: chosen[kind] for kind in ("best", "median", "worst")}


def write_overlays(
    model: nn.Module,
    cache: Cache,
    evaluation: Evaluation,
    folder: Path,
    device: torch.device,
    inference: Inference = DEFAULT_INFERENCE,
) -> tuple[tuple[str, str], ...]:
    """Writes the best, median and worst overlays; (kind, file's name) in the order shown.

    Files are called ``best_1_NAME.png``, 1 being the best, the median or the worst of its kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[str, str]] = []
    for kind, members in select_examples(evaluation.scores["dice"]).items():
        records = [evaluation.records[i] for i in members]
        masks = _Kept()
        evaluate(model, cache, records, device=device, inference=inference, on_image=masks)
        shown = zip(records, masks.pairs, strict=True)
        for place, (record, (predicted, truth)) in enumerate(shown):
            picture = draw_outlines(np.asarray(read_image(record.image)), truth, predicted)
            path = folder / f"{kind}_{place + 1}_{record.name}.png"
            Image.fromarray(picture).save(path)
            drawn.append((kind, path.name))
    return tuple(drawn)


class _Kept:
    """Keeps what ``evaluate`` shows: predicted and true masks, in order."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Mask, Mask]] = []

    def __call__(self, record: Record, predicted: Mask, truth: Mask) -> None:
        self.pairs.append((predicted, truth))


def _overlay_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height within OVERLAY_SIDE."""
    scale = min(1.0, OVERLAY_SIDE / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))
