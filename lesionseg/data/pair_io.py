"""Reading image and mask of a pair.

Images are always upright. A mask is turned by the EXIF orientation of its own file, or by that of
its image if it was made on the image as stored. Where the two orientations differ, the sizes of the
files decide. If both ways fit (squares, half turns, mirrored images), the majority of the pairs of
the data set that have a single way decides; without a majority the mask is turned by its own file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lesionseg.data.image_io import read_reduced_image, turn_upright, turned_shape
from lesionseg.data.mask_io import BinaryMask, read_binary_mask, read_mask
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError


class Alignment(StrEnum):
    """How a mask fits an image that has another EXIF orientation."""

    SAME = "same"  # the orientations do not differ
    UPRIGHT = "upright"  # only to the upright image
    STORED = "stored"  # only to the image as stored
    EITHER = "either"  # to both


@dataclass(frozen=True)
class MaskReading:
    """How a mask was read.

    Attributes:
        thresholded: whether it was not binary.
        from_alpha: whether it was read from the alpha channel.
        alignment: how it fits the image.
        image_orientation: the EXIF orientation of the image, 1 to 8.
        is_turned: whether the mask was turned by the orientation of the image.
        looks_inverted: see ``mask_checks.looks_inverted``.
    """

    thresholded: bool = False
    from_alpha: bool = False
    alignment: Alignment = Alignment.SAME
    image_orientation: int = 1
    is_turned: bool = False
    looks_inverted: bool = False

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MaskReading:
        """Return the reading of ``to_dict``."""
        return cls(**{**plain, "alignment": Alignment(plain.get("alignment", "same"))})

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return asdict(self)

    def apply(self, record: Record) -> Record:
        """Return the record with the orientation that its mask was turned by."""
        orientation = self.image_orientation if self.is_turned else None
        return replace(record, mask_orientation=orientation)


class LoadedPair(NamedTuple):
    """Image and mask of a pair, both upright.

    image: RGB, may be reduced; ``shape`` is its full height and width.
    mask: one channel, 255 on the lesion, else 0; ``area`` is the lesion's share.
    """

    image: Image.Image
    shape: tuple[int, int]
    mask: Image.Image
    area: float
    reading: MaskReading


def load_pair(record: Record, size: int) -> LoadedPair:
    """Read a pair whose image will be resized to ``size`` pixels a side.

    Raises:
        InputError: a file is not an image, shows no mask, or image and mask differ in size.
    """
    image, shape, orientation = read_reduced_image(record.image, size)
    mask = read_binary_mask(record.mask, inverted=record.is_inverted)
    alignment = _align(record, shape, orientation, mask)
    is_turned = alignment is Alignment.STORED or (
        alignment is Alignment.EITHER and record.mask_orientation is not None
    )
    upright = turn_upright(mask.image, orientation if is_turned else mask.orientation)
    reading = MaskReading(
        mask.thresholded, mask.from_alpha, alignment, orientation, is_turned=is_turned
    )
    return LoadedPair(image, shape, upright, mask.area, reading)


def read_true_mask(record: Record) -> NDArray[np.bool_]:
    """Return the upright mask of a record at its own size, bool [H, W], True on the lesion."""
    return read_mask(record.mask, record.mask_orientation, inverted=record.is_inverted)[0]


def find_records_to_turn(
    records: Sequence[Record], readings: Sequence[MaskReading | None]
) -> dict[int, Record]:
    """Return the records, by position, whose masks must be read again, turned by their images.

    These are the masks that fit either way in data sets in which more masks fit only the image as
    stored than only the upright image. None: the reading of an unusable pair.
    """
    pairs = list(zip(records, readings, strict=True))
    counts = Counter((record.source, reading.alignment) for record, reading in pairs if reading)
    return {
        i: replace(record, mask_orientation=reading.image_orientation)
        for i, (record, reading) in enumerate(pairs)
        if reading
        and reading.alignment is Alignment.EITHER
        and not reading.is_turned
        and counts[record.source, Alignment.STORED] > counts[record.source, Alignment.UPRIGHT]
    }


def check_same_size(path: Path, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raise InputError if the height and width of image and mask differ. path: of the mask."""
    if image != mask:
        raise InputError(
            f"{path}: the mask has {mask[1]}x{mask[0]} pixels, "
            f"its image {image[1]}x{image[0]}; they must be of one size"
        )


def _align(record: Record, shape: tuple[int, int], orientation: int, mask: BinaryMask) -> Alignment:
    """Return how a mask fits an upright image of this shape, stored in this orientation."""
    stored = (mask.image.height, mask.image.width)
    upright = turned_shape(stored, mask.orientation)
    if orientation == mask.orientation:
        check_same_size(record.mask, shape, upright)
        return Alignment.SAME
    match upright == shape, turned_shape(stored, orientation) == shape:
        case True, True:
            return Alignment.EITHER
        case True, False:
            return Alignment.UPRIGHT
        case False, True:
            return Alignment.STORED
    image = turned_shape(shape, orientation)
    raise InputError(
        f"{record.mask}: the mask has {stored[1]}x{stored[0]} pixels (EXIF orientation "
        f"{mask.orientation}), its image {image[1]}x{image[0]} as stored and {shape[1]}x{shape[0]} "
        f"upright (EXIF orientation {orientation}); they must be of one size, as stored or upright"
    )
