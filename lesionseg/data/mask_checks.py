"""Checks of the masks of a data set: how they were read, and whether they are plausible.

The checks take the pairs of one or several data sets: of each its record, the lesion's share of the
image, and how the mask was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from lesionseg.data.image_io import Pixels
from lesionseg.data.pair_io import Alignment, MaskReading
from lesionseg.data.pairs import Record, escape_unprintable
from lesionseg.errors import InputError, format_some


class ReadMask(NamedTuple):
    """A record, the lesion's share of the image, and how the mask was read."""

    record: Record
    area: float
    reading: MaskReading


def looks_inverted(image: Pixels, mask: Pixels) -> bool:
    """Return whether most of the border is lesion, and the lesion lighter than the skin.

    Args:
        image: uint8 [H, W, 3] in RGB, or [H, W] in grey levels.
        mask: uint8 [H, W], 0 on the skin.
    """
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    if 2 * np.count_nonzero(border) <= border.size or mask.all():
        return False
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    inside = (mask > 0).view(np.uint8)
    return cv2.mean(grey, inside)[0] > cv2.mean(grey, 1 - inside)[0]


def describe_readings(masks: Sequence[ReadMask]) -> list[str]:
    """Return a line for each unusual way in which masks were read, besides the threshold."""
    names = _names(m for m in masks if m.reading.from_alpha)
    line = f"{len(names)} masks were read from the alpha channel: {format_some(names)}"
    return [*([line] if names else []), *describe_alignments(masks)]


def describe_alignments(masks: Sequence[ReadMask]) -> list[str]:
    """Return a line for each way in which masks of images with another orientation were turned."""
    lines = []
    for alignment, is_turned, text in (
        (Alignment.STORED, True, "fit only the image as stored and were turned with it"),
        (Alignment.UPRIGHT, False, "fit only the upright image"),
        (Alignment.EITHER, True, "fit either way and were turned with the image, as most others"),
        (Alignment.EITHER, False, "fit either way and were taken to be upright"),
    ):
        found = (alignment, is_turned)
        if names := _names(m for m in masks if (m.reading.alignment, m.reading.is_turned) == found):
            lines.append(
                f"{len(names)} masks of images with another EXIF orientation {text}: "
                f"{format_some(names)}"
            )
    return lines


def warn_of_inverted(masks: Sequence[ReadMask]) -> list[str]:
    """Return a line for each data set whose masks seem to show the skin instead of the lesion."""
    lines = []
    for source, members in _by_source(masks).items():
        partial = [m for m in members if 0 < m.area < 1]
        n = sum(m.reading.looks_inverted for m in partial)
        if 2 * n > len(partial):
            remedy = (
                "they are inverted because of data.invert_masks; leave it out"
                if members[0].record.is_inverted
                else "if black is lesion, set data.invert_masks=true (of `data check`: "
                "--invert-masks)"
            )
            lines.append(
                f"{source and f'{source}: '}the masks seem to be inverted: in {n} of "
                f"{len(partial)} images most of the border is lesion, and the lesion is lighter "
                f"than the skin; {remedy}"
            )
    return lines


def require_lesions(masks: Sequence[ReadMask]) -> None:
    """Raise InputError if in a data set no mask shows both lesion and skin."""
    for source, members in _by_source(masks).items():
        if any(0 < m.area < 1 for m in members):
            continue
        full = sum(m.area == 1 for m in members)
        alpha = sum(m.reading.from_alpha for m in members)
        raise InputError(
            f"data: {source and f'{source}: '}none of {len(members)} masks shows both lesion and "
            f"skin: {full} are all lesion, {len(members) - full} all skin, such as "
            f"{members[0].record.mask} ({len(members) - alpha} were read from colours, {alpha} "
            f"from an alpha channel); save masks with 0 for skin and 255 for lesion"
        )


def _names(masks: Iterable[ReadMask]) -> list[str]:
    return [escape_unprintable(mask.record.name) for mask in masks]


def _by_source(masks: Sequence[ReadMask]) -> dict[str, list[ReadMask]]:
    """Return the masks by data set; the key is "" if there is only one."""
    by_source: dict[str, list[ReadMask]] = {}
    for mask in masks:
        by_source.setdefault(mask.record.source, []).append(mask)
    return by_source
