"""Reading images from disk; masks are read by ``mask_io``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lesionseg.errors import InputError

Pixels = NDArray[np.uint8]

#: How the stored pixels are moved for an upright image, by EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
        return _decode_rgb(path, image)[0]


class ReducedImage(NamedTuple):
    """An upright RGB image, which may be reduced.

    ``shape`` is the height and width of the whole upright image in pixels, ``orientation`` the EXIF
    orientation that the file has, 1 to 8.
    """

    image: Image.Image
    shape: tuple[int, int]
    orientation: int


def read_reduced_image(path: Path, size: int) -> ReducedImage:
    """Read an image that will be resized to ``size`` pixels a side.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size. With 1.5 x ``size`` the finest textures
    differ from a full decode. A factor slightly below 2 allows images of 3000 x 2000 pixels to be
    decoded at a quarter of their size for 256.

    Raises:
        InputError: the file is not an image or is damaged.
    """
    with open_image(path) as image:
        full_size = image.size
        image.draft("RGB", (15 * size // 8, 15 * size // 8))
        is_reduced = image.size != full_size
        decoded, orientation = _decode_rgb(path, image)
    width, height = full_size if is_reduced else decoded.size
    shape = (height, width)
    return ReducedImage(
        decoded, turned_shape(shape, orientation) if is_reduced else shape, orientation
    )


def read_image_and_size(path: Path, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return the image and the shape of ``read_reduced_image``."""
    return read_reduced_image(path, size)[:2]


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image to what ``read_image`` returns for its file."""
    return _decode_rgb(Path(getattr(image, "filename", "") or "image"), image)[0]


def resize_square(image: Image.Image, size: int) -> Pixels:
    """Resize an RGB image to uint8 [size, size, 3], ignoring its aspect ratio."""
    small = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small)


def load_stored(image: Image.Image) -> tuple[Image.Image, int]:
    """Decode an image; return it as its pixels are stored, and its EXIF orientation, 1 to 8."""
    is_tiff = image.format == "TIFF"
    orientation = _read_orientation(image) if is_tiff else 1
    image.load()
    remaining = _read_orientation(image)
    if is_tiff and remaining != orientation:  # PIL has turned it upright
        return turn_back(image, orientation), orientation
    return image, remaining


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image upright whose pixels are stored in an EXIF orientation."""
    if orientation == 1:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info = {}  # another call must not turn it again
    return turned


def turn_back(image: Image.Image, orientation: int) -> Image.Image:
    """Return an upright image as its pixels are stored in an EXIF orientation."""
    return turn_upright(image, {6: 8, 8: 6}.get(orientation, orientation))


def turned_shape(shape: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the height and width that stored ones become in an upright image."""
    height, width = shape
    return (width, height) if orientation >= 5 else shape


@contextmanager
def damaged_as_input_error(path: Path) -> Iterator[None]:
    """Raise InputError for an error that PIL raises while it decodes an image."""
    try:
        yield
    except (MemoryError, InputError):
        raise
    except Exception as error:
        raise InputError(f"{path}: the image is damaged ({_reason(error)})") from None


def _decode_rgb(path: Path, image: Image.Image) -> tuple[Image.Image, int]:
    """Return the upright RGB image, and the EXIF orientation that it was stored in."""
    with damaged_as_input_error(path):
        stored, orientation = load_stored(image)
        image = turn_upright(stored, orientation)
        if image.mode.startswith("I"):  # 16 bits per channel: PIL's conversion would clip
            wide = np.asarray(image).astype(np.uint32)
            image = Image.fromarray((wide >> (8 if wide.max() > 255 else 0)).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB"), orientation


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if it is missing or unreadable."""
    try:
        orientation: object = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # PIL repeats the path in its messages.
    return str(error).split(" '")[0].split(" <")[0].strip() or type(error).__name__
