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
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lesionseg.data.duplicates.leakage import DuplicateCluster, LeakageReport, Member
from lesionseg.data.image_io import read_binary_mask, read_image_and_size
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError
from lesionseg.viz.overlays import TRUE_COLOUR
from lesionseg.viz.trial_sheet import truncate_text

#: Side of an image, height of a line of text, space between images.
SIDE_PX, LINE_PX, GAP_PX = 170, 16, 8
#: Images per row, images drawn of one cluster, suspects drawn per section.
COLUMNS, MAX_PER_CLUSTER, MAX_PER_SECTION = 8, 4, 40

_TILE_PX, _HEADING_PX = SIDE_PX + 2 * LINE_PX + GAP_PX, 30
_RULE_COLOUR, _UNREADABLE_COLOUR, _PAPER_COLOUR = (120, 120, 120), (200, 0, 0), (235, 235, 235)


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
    fragmented = [m for m in usable if m.pair.components > 1]
    fragmented.sort(key=lambda m: m.pair.components, reverse=True)
    leaks = [_cluster_tiles(c) for c in report.clusters if c.is_leak]
    copies = [_cluster_tiles(c) for c in report.clusters if not c.is_leak]
    suspects = {
        "Leaks: near-duplicates in two splits or two data sets": leaks,
        "Near-duplicates within a split": copies,
        "Unusable pairs": [_tile(m, m.pair.problem) for m in members if m.pair.problem],
        "Masks without lesion": [_tile(m, "empty") for m in usable if m.pair.area == 0],
        "Masks without skin": [_tile(m, "full") for m in usable if m.pair.area == 1],
        "Masks that are not binary": [
            _tile(m, "thresholded") for m in usable if m.pair.thresholded
        ],
        "Masks in several components": [
            _tile(m, f"{m.pair.components} components") for m in fragmented
        ],
    }
    return (_Section(title, tiles) for title, tiles in suspects.items() if tiles)


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
    font = ImageFont.load_default(11)
    for tiles, (row, column) in zip(suspects, cells, strict=True):
        y = _HEADING_PX + row * _TILE_PX
        for k, tile in enumerate(tiles):
            x = GAP_PX + (column + k) * (SIDE_PX + GAP_PX)
            sheet.paste(_thumbnail(tile.record), (x, y))
            for line, text in enumerate((tile.caption, tile.note)):
                clipped = truncate_text(draw, text, font, SIDE_PX)
                draw.text((x, y + SIDE_PX + line * LINE_PX), clipped, "black", font)
        if len(tiles) > 1:  # one line below all images of a cluster
            left, rule = GAP_PX + column * (SIDE_PX + GAP_PX), y + SIDE_PX + 2 * LINE_PX
            draw.line((left, rule, x + SIDE_PX, rule), fill=_RULE_COLOUR, width=2)
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


def _thumbnail(record: Record) -> Image.Image:
    """Return the image with the outline of its mask in a square; red if it is unreadable."""
    try:
        image, _ = read_image_and_size(record.image, draft=SIDE_PX)
    except InputError:
        return Image.new("RGB", (SIDE_PX, SIDE_PX), _UNREADABLE_COLOUR)
    image = ImageOps.contain(image, (SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    try:
        mask = read_binary_mask(record.mask).image
    except InputError:
        mask = Image.new("L", image.size)
    inside = np.asarray(mask.resize(image.size, Image.Resampling.BOX)) >= 128
    contours, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    pixels = np.array(image)
    cv2.drawContours(pixels, contours, -1, TRUE_COLOUR, thickness=1, lineType=cv2.LINE_AA)
    return ImageOps.pad(Image.fromarray(pixels), (SIDE_PX, SIDE_PX), color=_PAPER_COLOUR)
