"""Reading one image or one mask from disk."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lesionseg.data import png
from lesionseg.errors import InputError

Pixels = NDArray[np.uint8]

#: A mask that is not binary is thresholded here, if it is nearly binary.
MASK_THRESHOLD = 128
#: Nearly binary: at least this share of pixels lies within NEAR of black or white.
NEARLY = 0.95
NEAR = 32

#: What PIL raises for a file that is no picture, a damaged one, or one too large to be true. It
#: takes what a header says at its word, so that errors of every kind come of a wrong one.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
#: The EXIF tag that says how the camera was held, what makes each of its values upright, and the
#: values that swap the axes.
_ORIENTATION = 0x0112
_UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)
#: Where PIL keeps what a file says of its orientation.
_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")

# PIL warns from its limit on and refuses from twice that on. What is refused is told as an error;
# what lies between is large and taken, without words of a "decompression bomb" on the way.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of metadata nothing but the orientation is used: what else is wrong with it is nobody's concern.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


def open_image(path: Path, decode: bool = False) -> Image.Image:
    """The picture, its pixels still to be decoded. InputError if it is none.

    decode: that they will be, and not the header alone be looked at.
    """
    try:
        return Image.open((png.inflated(path) if decode else None) or path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(
            f"{path}: the picture has more than the {most / 1e6:.0f} million pixels that are "
            f"taken; scale it down"
        ) from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a picture ({_reason(error)})") from None


def read_image(path: Path, draft: int | None = None) -> Image.Image:
    """An upright RGB image; InputError where the file is no picture or is cut off.

    draft: a side in pixels that is enough; a JPEG is then decoded at a half, a quarter or an
    eighth of its size, whichever is still as large.
    """
    with open_image(path, decode=True) as picture:
        if draft:
            picture.draft("RGB", (draft, draft))
        return _decode(path, picture, "RGB")


def draft_size(size: int) -> int:
    """The pixels of a side that a JPEG is decoded at to look as in full when it is squeezed.

    Near twice as many: with half as many again the finest textures begin to differ. A little
    less than twice lets photographs of 3000 x 2000 come to 256 from a quarter of their size.
    """
    return 15 * size // 8


def read_image_and_size(path: Path, draft: int) -> tuple[Image.Image, tuple[int, int]]:
    """``read_image`` and the height and width in pixels that the picture has in full, upright."""
    with open_image(path, decode=True) as picture:
        before = picture.size
        picture.draft("RGB", (draft, draft))
        smaller = picture.size != before  # only a JPEG's; its header says how it was held
        turned = smaller and _orientation(picture) in _TURNED
        image = _decode(path, picture, "RGB")
    if not smaller:
        return image, (image.height, image.width)
    return image, (before if turned else before[::-1])


def to_upright_rgb(picture: Image.Image) -> Image.Image:
    """An image of PIL as ``read_image`` would give its file: upright, RGB."""
    return _decode(Path(getattr(picture, "filename", "") or "picture"), picture, "RGB")


def resize_square(image: Image.Image, size: int) -> Pixels:
    """What a network sees of an RGB image: uint8 [size, size, 3], whatever its aspect was."""
    small = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small)


def read_mask(path: Path) -> tuple[NDArray[np.bool_], bool]:
    """A mask [H, W], True on the lesion, and whether it had to be thresholded.

    Black is skin; any other single value is lesion. A mask with more values is thresholded at
    MASK_THRESHOLD if it is nearly binary (a JPEG, smoothed edges); else InputError.
    """
    mask = read_binary_mask(path)
    return np.asarray(mask.picture) > 0, mask.thresholded


class BinaryMask(NamedTuple):
    """A mask as a picture of one channel: 255 on the lesion, else 0.

    area: the lesion's share of it, in [0, 1]. thresholded: whether it was not binary.
    """

    picture: Image.Image
    area: float
    thresholded: bool


def read_binary_mask(path: Path) -> BinaryMask:
    """As ``read_mask``, without an array of its size."""
    with open_image(path, decode=True) as picture:
        grey = _decode(path, picture, "L")
    levels = np.asarray(grey)
    inside, highest = cv2.countNonZero(levels), int(levels.max())
    # Counting what is there takes a quarter of the time of a histogram.
    if np.count_nonzero(levels == highest) == (inside or levels.size):
        return BinaryMask(grey if highest in {0, 255} else _cut(grey, 1), inside / levels.size, False)
    counts = grey.histogram()
    values = [value for value, count in enumerate(counts) if count]
    near = sum(counts[:NEAR]) + sum(counts[256 - NEAR :])
    # Labels such as 0, 1 and 2 are all near black: cut at the threshold, no lesion would be left.
    if values[-1] >= MASK_THRESHOLD and near >= NEARLY * sum(counts):
        area = sum(counts[MASK_THRESHOLD:]) / sum(counts)
        return BinaryMask(_cut(grey, MASK_THRESHOLD), area, True)
    raise InputError(
        f"{path}: the mask is not binary: {len(values)} grey levels from {values[0]} to "
        f"{values[-1]}; save it with 0 for skin and 255 for lesion"
    )


def _cut(grey: Image.Image, threshold: int) -> Image.Image:
    return grey.point([255 * (value >= threshold) for value in range(256)])


def read_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels, upright. InputError where the file is no picture."""
    with open_image(path) as picture:
        try:
            # PIL turns a TIFF itself, in some versions the size before the pixels; the metadata of
            # a PNG may follow its pixels.
            if picture.format in {"TIFF", "PNG"} and "exif" not in picture.info:
                picture.load()
        except _UNREADABLE as error:
            raise _damaged(path, error) from None
        width, height = picture.size
        return (width, height) if _orientation(picture) in _TURNED else (height, width)


def _decode(path: Path, picture: Image.Image, mode: str) -> Image.Image:
    try:
        picture.load()
        picture = _turned_upright(picture)
        if picture.mode.startswith("I"):  # 16 bits a channel: PIL's own conversion would clip
            wide = np.asarray(picture).astype(np.uint32)
            picture = Image.fromarray((wide >> (8 if wide.max() > 255 else 0)).astype(np.uint8))
        return picture if picture.mode == mode else picture.convert(mode)
    except _UNREADABLE as error:
        raise _damaged(path, error) from None


def _orientation(picture: Image.Image) -> int:
    """How the camera was held, from 1 to 8; 1, which is upright, where that cannot be made out.

    Metadata that cannot be read do not make a picture unusable whose pixels are sound.
    """
    try:
        found: object = picture.getexif().get(_ORIENTATION)
        return int(found) if isinstance(found, int) and found in _UPRIGHT else 1
    except _UNREADABLE:
        return 1


def _turned_upright(picture: Image.Image) -> Image.Image:
    """The picture, its pixels decoded, upright.

    ``ImageOps.exif_transpose`` writes the metadata anew, which fails where one of its many tags is
    of another kind than it should be.
    """
    way = _UPRIGHT.get(_orientation(picture))
    if way is None:
        return picture
    turned = picture.transpose(way)
    for key in _METADATA:  # else it would be turned again by whoever reads them
        turned.info.pop(key, None)
    return turned


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: the picture is damaged ({_reason(error)})")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # PIL repeats the whole path in its message.
    return str(error).split(" '")[0].split(" <")[0].strip() or type(error).__name__
