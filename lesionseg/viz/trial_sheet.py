"""One picture of a few validation images with the true and the predicted outline.

The same images for every training on the same data, so that pictures can be compared.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from lesionseg import metrics
from lesionseg.data.cache import Cache
from lesionseg.data.image_io import Pixels
from lesionseg.data.pairs import escape_unprintable
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.runtime.files import atomic_write
from lesionseg.viz.overlays import PREDICTED_COLOUR, TRUE_COLOUR, draw_outlines

#: Images in a sheet, and how many stand side by side.
SHEET_IMAGES, COLUMNS = 6, 3
#: Pixels: the side of an image in the sheet, and the height of the line below it.
SIDE, LINE = 240, 20
#: Bytes that a sheet may take; its quality gives way.
MOST_BYTES = 80_000
_QUALITIES = (85, 75, 65, 50, 35, 20, 10, 5, 2)

Positions = NDArray[np.int64]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def select_by_area(cache: Cache, members: Positions, n: int = SHEET_IMAGES) -> Positions:
    """Positions of ``n`` members from small lesions to large ones, all if there are no more.

    They stand in the middle of each n-th part of the members by the lesion's share of the image;
    equals go by their position. Nothing is drawn: the same members give the same images.
    """
    order = members[np.lexsort((members, cache.areas[members]))]
    if len(order) <= n:
        return order
    return order[((np.arange(n) + 0.5) * len(order) / n).astype(np.int64)]


def write_trial_sheet(
    model: nn.Module, cache: Cache, members: Positions, path: Path, device: torch.device
) -> None:
    """Writes the members' images as a JPEG of at most MOST_BYTES, whole or not at all.

    model: logits [N, 1, S, S] from normalised images; left in evaluation mode. Its outlines are
    cut at one half of the probability. Below each image are its name and its Dice at the
    network's size.
    """
    found = np.stack(list(predict_probabilities(model, cache, members, device=device)))
    tiles = [
        _tile(cache.images[i], cache.masks[i], probability, cache.names[i])
        for i, probability in zip(members, found, strict=True)
    ]
    atomic_write(path, _jpeg(_arranged(tiles)))


def _tile(image: Pixels, mask: Pixels, probability: NDArray[np.float32], name: str) -> Image.Image:
    size = (SIDE, SIDE)
    # Enlarged before it is cut: outlines of small networks are smooth, not stairs.
    truth = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
    predicted = cv2.resize(probability, size, interpolation=cv2.INTER_LINEAR) >= 0.5
    how = cv2.INTER_AREA if len(image) > SIDE else cv2.INTER_LINEAR
    large = np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
    tile = Image.new("RGB", (SIDE, SIDE + LINE), "white")
    tile.paste(Image.fromarray(draw_outlines(large, truth, predicted)), (0, 0))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(13)
    dice = f"Dice {_dice(probability, mask):.3f}"
    draw.text((SIDE - 4, SIDE + 2), dice, "black", font, anchor="ra")
    room = SIDE - 16 - draw.textlength(dice, font)
    draw.text((4, SIDE + 2), truncate_text(draw, name, font, room), "black", font)
    return tile


def _dice(probability: NDArray[np.float32], mask: Pixels) -> float:
    predicted, truth = torch.from_numpy(probability >= 0.5), torch.from_numpy(mask > 0)
    counts = metrics.count_pixels(predicted[None], truth[None]).numpy()
    return float(metrics.score_images(counts)["dice"][0])


def truncate_text(draw: ImageDraw.ImageDraw, name: str, font: Font, room: float) -> str:
    """The name, printable, as far as it fits into so many pixels; else it ends in an ellipsis."""
    shown = escape_unprintable(name)
    while len(shown) > 1 and draw.textlength(shown, font) > room:
        shown = shown[:-2] + "\N{HORIZONTAL ELLIPSIS}"
    return shown


def _arranged(tiles: Sequence[Image.Image]) -> Image.Image:
    """The tiles in rows, and below them what the colours mean."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    gap, height = 6, SIDE + LINE
    sheet = Image.new("RGB", (columns * (SIDE + gap) - gap, rows * height + LINE), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * (SIDE + gap), i // columns * height))
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(13), 4
    for word, colour in (("true outline", TRUE_COLOUR), ("predicted", PREDICTED_COLOUR)):
        top = rows * height
        draw.rectangle((x, top + 6, x + 14, top + 11), fill=colour)
        draw.text((x + 20, top + 1), word, "black", font)
        x += 36 + int(draw.textlength(word, font))
    return sheet


def _jpeg(sheet: Image.Image) -> bytes:
    data = b""
    for quality in _QUALITIES:
        stream = io.BytesIO()
        # Without subsampling the colours of thin outlines stay where they are.
        sheet.save(stream, "JPEG", quality=quality, subsampling=0)
        data = stream.getvalue()
        if len(data) <= MOST_BYTES:
            break
    return data
