"""Reading masks from disk.

The mask is in the colours or in the alpha channel of its file:

- without an alpha channel, or if it is opaque or constant and not 0, in the colours;
- if the colours are constant and the alpha channel is not, in the alpha channel;
- if both vary, both must show the same mask.

Black is skin, any other single colour or value is lesion. Other masks are thresholded at
MASK_THRESHOLD if they are nearly binary (JPEGs, smoothed edges), and refused otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lesionseg.data.image_io import (
    Pixels,
    damaged_as_input_error,
    load_stored,
    open_image,
    turn_back,
    turn_upright,
)
from lesionseg.errors import InputError

#: Smallest grey level of a lesion pixel in a nearly binary mask.
MASK_THRESHOLD = 128
#: A mask is nearly binary if this share of its pixels is within NEAR_LEVELS of black or white.
NEARLY_BINARY_SHARE = 0.95
NEAR_LEVELS = 32
#: In a mask of at most this number of grey levels, a dark one that is more frequent than all bright
#: ones is a label: 1 beside 255 for "ignore", or dark red beside the outline of PASCAL VOC.
MAX_LABELS = 8

_ADVICE = "save it with 0 for skin and 255 for lesion"


class BinaryMask(NamedTuple):
    """A mask as an image of one channel, 255 on the lesion, else 0, as its pixels are stored.

    ``area`` is the lesion's share, ``orientation`` the EXIF orientation of the file, 1 to 8.
    """

    image: Image.Image
    area: float
    thresholded: bool = False
    from_alpha: bool = False
    orientation: int = 1


def read_mask(
    path: Path, orientation: int | None = None, *, inverted: bool = False
) -> tuple[NDArray[np.bool_], bool]:
    """Return an upright mask, bool [H, W], True on the lesion, and whether it was thresholded.

    Args:
        path: of the mask.
        orientation: the EXIF orientation that its pixels are stored in; None: that of its file.
        inverted: whether the mask shows the skin.
    """
    mask = read_binary_mask(path, inverted=inverted)
    upright = turn_upright(mask.image, orientation or mask.orientation)
    return np.asarray(upright) > 0, mask.thresholded


def read_binary_mask(path: Path, *, inverted: bool = False) -> BinaryMask:
    """Read a mask as it is stored.

    inverted: whether the mask shows the skin.

    Raises:
        InputError: the file is not an image, is damaged, or shows no mask.
    """
    with open_image(path) as image, damaged_as_input_error(path):
        is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        stored, orientation = load_stored(image)
        if is_deep and len(stored.getbands()) > 1:
            stored = _read_deep(path)
            if image.format == "TIFF":  # OpenCV turns it upright, others not
                stored = turn_back(stored, orientation)
    mask = _read_channels(path, stored)._replace(orientation=orientation)
    if inverted:
        return mask._replace(image=mask.image.point(range(255, -1, -1)), area=1 - mask.area)
    return mask


def _read_channels(path: Path, image: Image.Image) -> BinaryMask:
    """Read the mask from the colours or from the alpha channel."""
    if not image.has_transparency_data or image.mode[0] in "IF":
        return _read_colours(path, image)
    if image.mode not in {"LA", "RGBA"}:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha, colours = image.getchannel("A"), image.convert(image.mode[:-1])
    opacity = np.asarray(alpha)
    lowest, highest = int(opacity.min()), int(opacity.max())
    if lowest >= 256 - NEAR_LEVELS or 0 < lowest == highest:
        return _read_colours(path, colours)
    is_constant = all(len(set(band.getextrema())) == 1 for band in colours.split())
    if is_constant and lowest != highest:
        return _binarize(path, alpha, "the alpha channel")._replace(from_alpha=True)
    contradiction = InputError(
        f"{path}: the colours and the alpha channel show different masks; remove one of them: "
        f"{_ADVICE}, without an alpha channel"
    )
    try:
        mask = _read_colours(path, colours)
        other = _binarize(path, alpha)
    except InputError:
        raise contradiction from None
    differ = np.asarray(mask.image) != np.asarray(other.image)
    if not differ.any():
        return mask
    if (differ & ((opacity == lowest) | (opacity == highest))).any():
        raise contradiction
    return other._replace(from_alpha=True)  # they differ on soft edges only


def _read_colours(path: Path, image: Image.Image) -> BinaryMask:
    """Read the mask from the colours or grey levels of an image."""
    if image.mode in {"1", "L"}:
        return _binarize(path, image if image.mode == "L" else image.convert("L"))
    if image.mode[0] in "IF":
        return _binarize_wide(path, np.asarray(image))
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    bands = cv2.split(np.asarray(rgb))
    if np.array_equal(bands[0], bands[1]) and np.array_equal(bands[1], bands[2]):
        return _binarize(path, Image.fromarray(np.asarray(bands[0])))
    brightest = cv2.max(cv2.max(bands[0], bands[1]), bands[2])
    darkest = cv2.min(cv2.min(bands[0], bands[1]), bands[2])
    ranges = [cv2.minMaxLoc(band, mask=brightest)[:2] for band in bands]
    if all(low == high for low, high in ranges):  # black and one colour
        return _from_levels(np.asarray(brightest), 1)
    # A colour is as far from black as its brightest channel, and from white as its darkest one.
    is_near = (np.asarray(brightest) < NEAR_LEVELS) | (np.asarray(darkest) >= 256 - NEAR_LEVELS)
    near = int(np.count_nonzero(is_near))
    return _threshold(path, np.asarray(rgb.convert("L")), near, "the mask")


def _binarize(path: Path, grey: Image.Image, what: str = "the mask") -> BinaryMask:
    """Return the mask of an image of one channel."""
    levels = np.asarray(grey)
    inside, highest = cv2.countNonZero(levels), int(levels.max())
    # Counting two values takes a quarter of the time of a histogram.
    if np.count_nonzero(levels == highest) == (inside or levels.size):
        if highest in {0, 255}:
            return BinaryMask(grey, inside / levels.size)
        return _from_levels(levels, 1)
    return _threshold(path, levels, None, what)


def _binarize_wide(path: Path, values: NDArray[Any]) -> BinaryMask:
    """Return the mask of integers of more than 8 bits or of real numbers, [H, W]."""
    highest, inside = values.max(), np.count_nonzero(values)
    if values.min() >= 0 and np.count_nonzero(values == highest) == (inside or values.size):
        return _from_levels((values > 0).view(np.uint8), 1)
    if values.dtype.kind == "f" or values.min() < 0 or highest > 0xFFFF:
        raise InputError(f"{path}: the mask is not binary; {_ADVICE}")
    return _threshold(path, _narrow(values), None, "the mask")


def _threshold(path: Path, levels: Pixels, near: int | None, what: str) -> BinaryMask:
    """Threshold grey levels, [H, W]; ``near``: number of pixels near black or white if known."""
    counts = np.array(Image.fromarray(levels).histogram())
    values = np.flatnonzero(counts)
    if near is None:
        near = int(counts[:NEAR_LEVELS].sum() + counts[256 - NEAR_LEVELS :].sum())
    bright = counts[MASK_THRESHOLD:].sum()
    dark = counts[values[0] + 1 : MASK_THRESHOLD]
    has_labels = len(values) <= MAX_LABELS and dark.max(initial=0) > bright
    if bright and near >= NEARLY_BINARY_SHARE * levels.size and not has_labels:
        return _from_levels(levels, MASK_THRESHOLD)._replace(thresholded=True)
    raise InputError(
        f"{path}: {what} is not binary: {len(values)} grey levels from {values[0]} to "
        f"{values[-1]}; {_ADVICE}"
    )


def _from_levels(levels: Pixels, threshold: int) -> BinaryMask:
    """Return the mask of the pixels whose grey level is at least the threshold."""
    _, binary = cv2.threshold(levels, threshold - 1, 255, cv2.THRESH_BINARY)
    image = np.asarray(binary, np.uint8)
    return BinaryMask(Image.fromarray(image), cv2.countNonZero(image) / image.size)


def _read_deep(path: Path) -> Image.Image:
    """Read colours of 16 bits per channel, of which PIL drops the lower 8 bits."""
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    pixels = _narrow(np.asarray(values))
    code = cv2.COLOR_BGRA2RGBA if pixels.shape[-1] == 4 else cv2.COLOR_BGR2RGB
    return Image.fromarray(np.asarray(cv2.cvtColor(pixels, code)))


def _narrow(values: NDArray[Any]) -> Pixels:
    """Scale 16 bits to 8 if there are values above 255; what is not 0 stays so."""
    if values.max() <= 255:
        return values.astype(np.uint8)
    return np.asarray(np.maximum(values >> 8, values > 0), np.uint8)
