"""A JPEG of a few validation images with true and predicted outlines.

All trainings on the same data show the same images.
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

from lesionseg.data.cache import Cache
from lesionseg.data.image_io import Pixels
from lesionseg.data.pairs import escape_unprintable
from lesionseg.inference.evaluate import predict_probabilities
from lesionseg.metrics.overlap import dice_score
from lesionseg.runtime.files import atomic_write
from lesionseg.viz.overlays import PREDICTED_COLOUR, TRUE_COLOUR, draw_outlines

SHEET_IMAGES, COLUMNS = 6, 3
#: Side of an image, and height of the line of text below it.
SIDE_PX, LINE_PX = 240, 20
#: Maximum size of the file; the JPEG quality is reduced until it fits.
MAX_BYTES = 80_000

Positions = NDArray[np.int64]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def select_by_area(cache: Cache, members: Positions, n: int = SHEET_IMAGES) -> Positions:
    """Select ``n`` cache positions, or all, at evenly spaced quantiles of lesion area.

    The result does not depend on random numbers or on the order of ``members``, [M].
    """
    order = members[np.lexsort((members, cache.areas[members]))]
    if len(order) <= n:
        return order
    return order[((np.arange(n) + 0.5) * len(order) / n).astype(np.int64)]


def write_trial_sheet(
    model: nn.Module,
    cache: Cache,
    members: Positions,
    path: Path,
    device: torch.device,
    amp: str = "auto",
) -> None:
    """Write the members' images as a JPEG of at most MAX_BYTES, atomically.

    Predicted outlines are at a probability of 0.5. Below each image are its name and its Dice at
    the cache's size. The model is left in evaluation mode.
    """
    probabilities = predict_probabilities(model, cache, members, device=device, amp=amp)
    tiles = [
        _draw_tile(cache.images[i], cache.masks[i], probability, cache.names[i])
        for i, probability in zip(members, probabilities, strict=True)
    ]
    atomic_write(path, _encode_jpeg(_arrange_tiles(tiles)))


def _draw_tile(
    image: Pixels, mask: Pixels, probability: NDArray[np.float32], name: str
) -> Image.Image:
    size = (SIDE_PX, SIDE_PX)
    # Enlarged before thresholding, so that outlines are smooth.
    truth = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5
    predicted = cv2.resize(probability, size, interpolation=cv2.INTER_LINEAR) >= 0.5
    interpolation = cv2.INTER_AREA if len(image) > SIDE_PX else cv2.INTER_LINEAR
    large = np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)
    tile = Image.new("RGB", (SIDE_PX, SIDE_PX + LINE_PX), "white")
    tile.paste(Image.fromarray(draw_outlines(large, truth, predicted)), (0, 0))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(13)
    dice = f"Dice {dice_score(probability >= 0.5, mask > 0):.3f}"
    draw.text((SIDE_PX - 4, SIDE_PX + 2), dice, "black", font, anchor="ra")
    width = SIDE_PX - 16 - draw.textlength(dice, font)
    draw.text((4, SIDE_PX + 2), truncate_text(draw, name, font, width), "black", font)
    return tile


def truncate_text(draw: ImageDraw.ImageDraw, text: str, font: Font, width_px: float) -> str:
    """Escape unprintable characters, and end with an ellipsis a text that is too long."""
    text = escape_unprintable(text)
    while len(text) > 1 and draw.textlength(text, font) > width_px:
        text = text[:-2] + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _arrange_tiles(tiles: Sequence[Image.Image]) -> Image.Image:
    """Arrange the tiles in rows, with a legend below."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    gap, height = 6, SIDE_PX + LINE_PX
    sheet = Image.new("RGB", (columns * (SIDE_PX + gap) - gap, rows * height + LINE_PX), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * (SIDE_PX + gap), i // columns * height))
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(13), 4
    for label, colour in (("true outline", TRUE_COLOUR), ("predicted", PREDICTED_COLOUR)):
        top = rows * height
        draw.rectangle((x, top + 6, x + 14, top + 11), fill=colour)
        draw.text((x + 20, top + 1), label, "black", font)
        x += 36 + int(draw.textlength(label, font))
    return sheet


def _encode_jpeg(sheet: Image.Image) -> bytes:
    for quality in (85, 75, 65, 50, 35, 20, 10, 5, 2):
        stream = io.BytesIO()
        # Chroma subsampling would blur the colours of thin outlines.
        sheet.save(stream, "JPEG", quality=quality, subsampling=0)
        if stream.tell() <= MAX_BYTES:
            break
    return stream.getvalue()
