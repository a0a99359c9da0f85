"""Contact sheet of the suspect images of audited data sets.

Near-duplicates are placed side by side, leaks first. Unusable pairs follow, then masks that are
empty, full, not binary or in several components. Masks are drawn as outlines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lesionseg.data.duplicates.leakage import DuplicateCluster, LeakageReport, Member
from lesionseg.data.image_io import read_binary, read_image
from lesionseg.data.index import Record
from lesionseg.errors import InputError
from lesionseg.viz.overlays import TRUE_COLOUR
from lesionseg.viz.trial_sheet import shortened

#: Side of an image, height of a line of text, space between images.
SIDE_PX, LINE_PX, GAP_PX = 170, 16, 8
#: Images per row, images drawn of one cluster, suspects drawn per section.
COLUMNS, MAX_PER_CLUSTER, MAX_PER_SECTION = 8, 4, 40

_TILE_PX, _HEADING_PX = SIDE_PX + 2 * LINE_PX + GAP_PX, 30
_RULE_COLOUR, _CROSS_COLOUR, _PAPER_COLOUR = (120, 120, 120), (200, 0, 0), (235, 235, 235)


@dataclass(frozen=True)
class _Tile:
    record: Record
    caption: str
    note: str


@dataclass(frozen=True)
class _Section:
    """A heading and its suspects; the tiles of one suspect stay together in a row."""

    title: str
    suspects: Sequence[Sequence[_Tile]]

    @property
    def heading(self) -> str:
        count = len(self.suspects)
        limit = f", the first {MAX_PER_SECTION}" if count > MAX_PER_SECTION else ""
        return f"{self.title}: {count}{limit}"


def draw_contact_sheet(report: LeakageReport, path: Path) -> int:
    """Write the contact sheet, as PNG or JPEG depending on the suffix of the path.

    At most MAX_PER_SECTION suspects of each kind are drawn; the heading gives their number.

    Returns:
        The number of suspects.

    Raises:
        InputError: the file cannot be written.
    """
    sections = list(_build_sections(report))
    try:
        _draw_sheet(sections).save(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--sheet: {path}: cannot be written: {getattr(error, 'strerror', None) or error}; "
            f"give a file ending in .png or .jpg in a folder that exists"
        ) from error
    return sum(len(section.suspects) for section in sections)


def _build_sections(report: LeakageReport) -> Iterator[_Section]:
    members = [
        Member(name, record, pair)
        for name, audit in report.audits.items()
        for record, pair in zip(audit.index.records, audit.pairs, strict=True)
    ]
    usable = [m for m in members if not m.pair.problem]
    fragmented = sorted((m for m in usable if m.pair.components > 1), key=_minus_components)
    suspects = {
        "Leaks: near-duplicates in two splits or two data sets": [
            _cluster_tiles(c) for c in report.clusters if c.is_leak
        ],
        "Near-duplicates within a split": [
            _cluster_tiles(c) for c in report.clusters if not c.is_leak
        ],
        "Unusable pairs": [_tile(m, m.pair.problem) for m in members if m.pair.problem],
        "Masks without lesion": [_tile(m, "empty") for m in usable if m.pair.area == 0],
        "Masks without skin": [_tile(m, "full") for m in usable if m.pair.area == 1],
        "Masks that are not binary": [
            _tile(m, "thresholded at 128") for m in usable if m.pair.thresholded
        ],
        "Masks in several components": [
            _tile(m, f"{m.pair.components} components") for m in fragmented
        ],
    }
    return (_Section(title, tiles) for title, tiles in suspects.items() if tiles)


def _minus_components(member: Member) -> int:
    return -member.pair.components


def _tile(member: Member, note: str) -> list[_Tile]:
    return [_Tile(member.record, str(member), note)]


def _cluster_tiles(cluster: DuplicateCluster) -> list[_Tile]:
    members = cluster.sorted_members()[:MAX_PER_CLUSTER]
    rest = len(cluster.members) - len(members)
    notes = [""] * len(members)
    notes[0] = "identical" if cluster.exact else f"similarity {cluster.similarity:.2f}"
    if rest:
        notes[-1] = f"and {rest} more"
    return [_Tile(m.record, str(m), note) for m, note in zip(members, notes, strict=True)]


def _draw_sheet(sections: Sequence[_Section]) -> Image.Image:
    width = COLUMNS * (SIDE_PX + GAP_PX) + GAP_PX
    parts = [_draw_section(section, width) for section in sections]
    if not parts:
        parts = [Image.new("RGB", (width, 2 * _HEADING_PX), "white")]
        font = ImageFont.load_default(16)
        ImageDraw.Draw(parts[0]).text((GAP_PX, GAP_PX), "No suspect images.", "black", font)
    return Image.fromarray(np.concatenate([np.asarray(part) for part in parts]))


def _draw_section(section: _Section, width: int) -> Image.Image:
    suspects = section.suspects[:MAX_PER_SECTION]
    cells = _place(suspects)
    rows = cells[-1][0] + 1
    sheet = Image.new("RGB", (width, _HEADING_PX + rows * _TILE_PX), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, 6), section.heading, "black", ImageFont.load_default(16))
    for tiles, (row, column) in zip(suspects, cells, strict=True):
        left, top = GAP_PX + column * (SIDE_PX + GAP_PX), _HEADING_PX + row * _TILE_PX
        for k, tile in enumerate(tiles):
            _draw_tile(sheet, draw, tile, (left + k * (SIDE_PX + GAP_PX), top))
        if len(tiles) > 1:  # one line below all images of a cluster
            right = left + len(tiles) * (SIDE_PX + GAP_PX) - GAP_PX
            y = top + SIDE_PX + 2 * LINE_PX
            draw.line((left, y, right, y), fill=_RULE_COLOUR, width=2)
    return sheet


def _place(suspects: Sequence[Sequence[_Tile]]) -> list[tuple[int, int]]:
    """Return the row and the first column of each suspect."""
    cells, row, column = [], 0, 0
    for tiles in suspects:
        if column + len(tiles) > COLUMNS:
            row, column = row + 1, 0
        cells.append((row, column))
        column += len(tiles)
    return cells


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: _Tile, corner: tuple[int, int]
) -> None:
    x, y = corner
    sheet.paste(_thumbnail(tile.record), corner)
    font = ImageFont.load_default(11)
    for line, text in enumerate((tile.caption, tile.note)):
        clipped = shortened(draw, text, font, SIDE_PX)
        draw.text((x, y + SIDE_PX + line * LINE_PX), clipped, "black", font)


def _thumbnail(record: Record) -> Image.Image:
    """Return the image with the outline of its mask in a square; a cross if it is unreadable."""
    square = Image.new("RGB", (SIDE_PX, SIDE_PX), _PAPER_COLOUR)
    try:
        image = read_image(record.image, draft=SIDE_PX)
    except InputError:
        draw = ImageDraw.Draw(square)
        draw.line((0, 0, SIDE_PX, SIDE_PX), fill=_CROSS_COLOUR, width=2)
        draw.line((0, SIDE_PX, SIDE_PX, 0), fill=_CROSS_COLOUR, width=2)
        return square
    scale = SIDE_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    corner = ((SIDE_PX - width) // 2, (SIDE_PX - height) // 2)
    square.paste(_draw_outline(small, record), corner)
    return square


def _draw_outline(image: Image.Image, record: Record) -> Image.Image:
    try:
        mask = read_binary(record.mask).picture
    except InputError:
        return image
    small = np.asarray(mask.resize(image.size, Image.Resampling.BOX))
    contours, _ = cv2.findContours(
        (small >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    canvas = np.array(image)
    cv2.drawContours(canvas, contours, -1, TRUE_COLOUR, thickness=1, lineType=cv2.LINE_AA)
    return Image.fromarray(canvas)
