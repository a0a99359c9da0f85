"""Reading images and masks from disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from lesionseg.errors import InputError

Pixels = NDArray[np.uint8]

#: Grey level from which on a pixel of a nearly binary mask is lesion.
MASK_THRESHOLD = 128
#: A mask is nearly binary if this share of its pixels is within NEAR_LEVELS of black or white.
NEARLY_BINARY_SHARE = 0.95
NEAR_LEVELS = 32

# PIL warns above MAX_IMAGE_PIXELS and raises above twice as many; images in between are accepted.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Only the orientation is used, so that other faults in the metadata do not matter.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


def open_image(path: Path) -> Image.Image:
    """Open an image; raises InputError if it is missing, not an image, or too large."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(
            f"{path}: the image has more than {limit / 1e6:.0f} million pixels; scale it down"
        ) from None
    except Exception as error:  # PIL raises many types
        raise InputError(f"{path}: not an image ({_reason(error)})") from None


def read_image(path: Path) -> Image.Image:
    """Return an upright RGB image; raises InputError if it is not an image or is damaged."""
    with open_image(path) as image:
        return _decode(path, image, "RGB")


def read_image_and_size(path: Path, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return an upright RGB image and its full height and width in pixels.

    A JPEG that will be resized to ``size`` pixels a side may be decoded at 1/2, 1/4 or 1/8 of its
    size. With 1.5 x ``size`` the finest textures differ from a full decode. A factor slightly
    below 2 allows images of 3000 x 2000 pixels to be decoded at a quarter of their size for 256.

    Raises:
        InputError: the file is not an image or is damaged.
    """
    with open_image(path) as image:
        full_size = image.size
        image.draft("RGB", (15 * size // 8, 15 * size // 8))
        is_reduced = image.size != full_size
        is_swapped = is_reduced and _orientation(image) >= 5
        decoded = _decode(path, image, "RGB")
    width, height = full_size if is_reduced else decoded.size
    return decoded, ((width, height) if is_swapped else (height, width))


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image to what ``read_image`` returns for its file."""
    return _decode(Path(getattr(image, "filename", "") or "image"), image, "RGB")


def resize_square(image: Image.Image, size: int) -> Pixels:
    """Resize an RGB image to uint8 [size, size, 3], ignoring its aspect ratio."""
    small = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small)


def read_mask(path: Path) -> tuple[NDArray[np.bool_], bool]:
    """Return a mask, bool [H, W], True on the lesion, and whether it was thresholded."""
    mask = read_binary_mask(path)
    return np.asarray(mask.image) > 0, mask.thresholded


class BinaryMask(NamedTuple):
    """A mask as an image of one channel, 255 on the lesion, else 0; ``area`` is its share."""

    image: Image.Image
    area: float
    thresholded: bool


def read_binary_mask(path: Path) -> BinaryMask:
    """Read a mask without another array of its size.

    Black is skin, any other single value is lesion. Masks with more values are thresholded at
    MASK_THRESHOLD if they are nearly binary (JPEGs, smoothed edges).

    Raises:
        InputError: the file is not an image, is damaged, or is not nearly binary.
    """
    with open_image(path) as image:
        grey = _decode(path, image, "L")
    levels = np.asarray(grey)
    inside, highest = cv2.countNonZero(levels), int(levels.max())
    # Counting two values takes a quarter of the time of a histogram.
    if np.count_nonzero(levels == highest) == (inside or levels.size):
        image = grey if highest in {0, 255} else _threshold(grey, 1)
        return BinaryMask(image, inside / levels.size, False)
    counts = grey.histogram()
    values = [value for value, count in enumerate(counts) if count]
    near = sum(counts[:NEAR_LEVELS]) + sum(counts[256 - NEAR_LEVELS :])
    # Labels such as 0, 1, 2 are all near black: thresholding would leave no lesion.
    if values[-1] >= MASK_THRESHOLD and near >= NEARLY_BINARY_SHARE * sum(counts):
        area = sum(counts[MASK_THRESHOLD:]) / sum(counts)
        return BinaryMask(_threshold(grey, MASK_THRESHOLD), area, True)
    raise InputError(
        f"{path}: the mask is not binary: {len(values)} grey levels from {values[0]} to "
        f"{values[-1]}; save it with 0 for skin and 255 for lesion"
    )


def _threshold(grey: Image.Image, threshold: int) -> Image.Image:
    return grey.point([255 * (value >= threshold) for value in range(256)])


def _decode(path: Path, image: Image.Image, mode: str) -> Image.Image:
    try:
        image.load()
        image = _make_upright(image)
        if image.mode.startswith("I"):  # 16 bits per channel: PIL's conversion would clip
            wide = np.asarray(image).astype(np.uint32)
            image = Image.fromarray((wide >> (8 if wide.max() > 255 else 0)).astype(np.uint8))
        return image if image.mode == mode else image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{path}: the image is damaged ({_reason(error)})") from None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if it is missing or unreadable."""
    try:
        orientation: object = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _make_upright(image: Image.Image) -> Image.Image:
    """Return a decoded image upright."""
    orientation = _orientation(image)
    if orientation == 1:
        return image
    image, exif = image.copy(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # Without other tags: ``exif_transpose`` rewrites them, and fails if one has a wrong type.
    image.info = {"exif": exif.tobytes()}
    return ImageOps.exif_transpose(image)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # PIL repeats the path in its messages.
    return str(error).split(" '")[0].split(" <")[0].strip() or type(error).__name__
