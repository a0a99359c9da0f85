"""A contact sheet: the pictures of audited data sets that are worth a look, on one page.

Copies stand side by side, leaks first; pairs that cannot be used, and masks that are empty, full,
not binary or in several pieces, follow one by one. The mask's outline is drawn in the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lesionseg.data.duplicates.leaks import Check, Copies, Member
from lesionseg.data.image_io import read_binary, read_image
from lesionseg.data.index import Record
from lesionseg.errors import InputError
from lesionseg.viz.overlays import TRUE_COLOUR
from lesionseg.viz.trial_sheet import shortened

#: Pixels: the side of a picture, the lines below it, the space between pictures.
SIDE, LINE, GAP = 170, 16, 8
#: Pictures side by side, and of one set of copies; suspects of a kind that are shown at most.
COLUMNS, ABREAST, MOST = 8, 4, 40

_TILE, _HEADING = SIDE + 2 * LINE + GAP, 30


@dataclass(frozen=True)
class _Tile:
    record: Record
    name: str
    note: str


@dataclass(frozen=True)
class _Section:
    """A heading and what stands below it, each strip of tiles together in one line."""

    title: str
    strips: tuple[tuple[_Tile, ...], ...]


def draw_suspects(found: Check, path: Path) -> int:
    """Writes the sheet, as PNG or JPEG by the path's ending; how many suspects there are.

    Of each kind the first MOST are drawn, and the heading says how many there are. InputError
    where the file cannot be written.
    """
    sections = list(_sections(found))
    sheet = _drawn(sections)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--sheet: {path}: cannot be written: {getattr(error, 'strerror', None) or error}; "
            f"give a file ending in .png or .jpg in a folder that exists"
        ) from error
    return sum(len(strips) for _, strips in _suspects(found))


def _suspects(found: Check) -> Iterator[tuple[str, list[tuple[_Tile, ...]]]]:
    """By kind, all of them."""
    leaks = [_abreast(c) for c in found.copies if c.is_leak]
    yield "Leaks: copies in two splits or two sets", leaks
    yield "Copies within a split", [_abreast(c) for c in found.copies if not c.is_leak]
    members = [
        Member(name, record, pair)
        for name, audit in found.audits.items()
        for record, pair in zip(audit.index.records, audit.pairs, strict=True)
    ]
    broken = [_alone(m, m.pair.problem or "") for m in members if m.pair.problem]
    yield "Cannot be used", broken
    whole = [m for m in members if not m.pair.problem]
    yield "Masks without lesion", [_alone(m, "empty") for m in whole if m.pair.area == 0]
    yield "Masks without skin", [_alone(m, "full") for m in whole if m.pair.area == 1]
    cut = [_alone(m, "cut at 128") for m in whole if m.pair.thresholded]
    yield "Masks that are not binary", cut
    several = sorted((m for m in whole if m.pair.components > 1), key=lambda m: -m.pair.components)
    pieces = [_alone(m, f"{m.pair.components} components") for m in several]
    yield "Masks in several components", pieces


def _sections(found: Check) -> Iterator[_Section]:
    for title, strips in _suspects(found):
        if strips:
            first = f", the first {MOST}" if len(strips) > MOST else ""
            yield _Section(f"{title}: {len(strips)}{first}", tuple(strips[:MOST]))


def _abreast(copies: Copies) -> tuple[_Tile, ...]:
    shown = copies.apart()[:ABREAST]
    how = "same pixels" if copies.exact else f"alike by {copies.likeness:.2f}"
    more = len(copies.members) - len(shown)
    notes = [how] + [""] * (len(shown) - 2) + [f"and {more} more" if more else ""]
    return tuple(_tile(m, note) for m, note in zip(shown, notes, strict=True))


def _alone(member: Member, note: str) -> tuple[_Tile, ...]:
    return (_tile(member, note),)


def _tile(member: Member, note: str) -> _Tile:
    return _Tile(member.record, str(member), note)


def _drawn(sections: Sequence[_Section]) -> Image.Image:
    places, height = _placed(sections)
    width = COLUMNS * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, max(height, 2 * _HEADING)), "white")
    draw = ImageDraw.Draw(sheet)
    if not sections:
        draw.text((GAP, GAP), "Nothing that is worth a look.", "black", ImageFont.load_default(16))
    for section, top, strips in places:
        draw.text((GAP, top + 6), section.title, "black", ImageFont.load_default(16))
        for strip, (x, y) in zip(section.strips, strips, strict=True):
            for k, tile in enumerate(strip):
                _paste(sheet, draw, tile, (x + k * (SIDE + GAP), y))
            if len(strip) > 1:  # what belongs together is underlined as one
                right = x + len(strip) * (SIDE + GAP) - GAP
                line = y + SIDE + 2 * LINE
                draw.line((x, line, right, line), fill=(120, 120, 120), width=2)
    return sheet


def _placed(
    sections: Sequence[_Section],
) -> tuple[list[tuple[_Section, int, list[tuple[int, int]]]], int]:
    """For each section where its heading and its strips stand, and the height of it all."""
    places, top = [], 0
    for section in sections:
        column, row, strips = 0, 0, []
        for strip in section.strips:
            if column + len(strip) > COLUMNS:
                column, row = 0, row + 1
            strips.append((GAP + column * (SIDE + GAP), top + _HEADING + row * _TILE))
            column += len(strip)
        places.append((section, top, strips))
        top += _HEADING + (row + 1) * _TILE
    return places, top


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: _Tile, at: tuple[int, int]) -> None:
    x, y = at
    sheet.paste(_picture(tile.record), at)
    font = ImageFont.load_default(11)
    for line, text in enumerate((tile.name, tile.note)):
        draw.text((x, y + SIDE + line * LINE), shortened(draw, text, font, SIDE), "black", font)


def _picture(record: Record) -> Image.Image:
    """The picture with its mask's outline, as far as they can be read, in a square."""
    square = Image.new("RGB", (SIDE, SIDE), (235, 235, 235))
    try:
        image = read_image(record.image, draft=SIDE)
    except InputError:
        draw = ImageDraw.Draw(square)
        draw.line((0, 0, SIDE, SIDE), fill=(200, 0, 0), width=2)
        draw.line((0, SIDE, SIDE, 0), fill=(200, 0, 0), width=2)
        return square
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    square.paste(_outlined(small, record), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


def _outlined(image: Image.Image, record: Record) -> Image.Image:
    try:
        mask = read_binary(record.mask).picture
    except InputError:
        return image
    small = np.asarray(mask.resize(image.size, Image.Resampling.BOX))
    found, _ = cv2.findContours(
        (small >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    canvas = np.array(image)
    cv2.drawContours(canvas, found, -1, TRUE_COLOUR, thickness=1, lineType=cv2.LINE_AA)
    return Image.fromarray(canvas)
