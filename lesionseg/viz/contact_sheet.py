"""Contact sheet of the suspect images of audited data sets.

Near-duplicates are placed side by side, leaks first. Unusable pairs follow, then masks that are
empty, full, not binary, possibly inverted or turned, or in several components. Masks are drawn as
outlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lesionseg.data.duplicates.audit import PairAudit
from lesionseg.data.duplicates.leakage import DuplicateCluster, LeakageReport
from lesionseg.data.image_io import Pixels, read_image_and_size
from lesionseg.data.pair_io import Alignment, read_true_mask
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError
from lesionseg.viz.overlays import draw_outlines
from lesionseg.viz.trial_sheet import truncate_text

#: Side of an image, height of a line of text, space between images.
SIDE_PX, LINE_PX, GAP_PX = 170, 16, 8
#: Images per row, images drawn of one cluster, suspects drawn per section.
COLUMNS, MAX_PER_CLUSTER, MAX_PER_SECTION = 8, 4, 40

_STEP_PX, _TILE_PX, _HEADING_PX = SIDE_PX + GAP_PX, SIDE_PX + 2 * LINE_PX + GAP_PX, 30
_RULE_COLOUR, _UNREADABLE_COLOUR, _PAPER_COLOUR = (120, 120, 120), (200, 0, 0), (235, 235, 235)


class _Tile(NamedTuple):
    pair: PairAudit
    note: str
    rule_px: int = 0  # length of the line below, which connects the images of a cluster


#: Suspects by the heading of their section; the tiles of one suspect stay together in a row.
_Sections = Mapping[str, Sequence[Sequence[_Tile]]]


def draw_contact_sheet(report: LeakageReport, path: Path) -> int:
    """Write the contact sheet, as PNG or JPEG depending on the suffix of the path.

    At most MAX_PER_SECTION suspects of each kind are drawn; the heading gives their number.

    Returns:
        The number of suspects.
    """
    sections = _build_sections(report)
    parts = [_draw_section(*each) for each in sections.items()]
    parts = parts or [_draw_section("No suspect images.", [])]
    Image.fromarray(np.concatenate(parts)).save(path)
    return sum(map(len, sections.values()))


def _build_sections(report: LeakageReport) -> _Sections:
    members = [pair for audit in report.audits.values() for pair in audit.pairs]
    usable = [m for m in members if not m.problem]
    fragmented = sorted(usable, key=lambda m: m.components, reverse=True)
    suspects = {
        "Leaks: near-duplicates in two splits or two data sets": [
            _cluster_tiles(c) for c in report.leaks
        ],
        "Near-duplicates within a split": [
            _cluster_tiles(c) for c in report.clusters if not c.is_leak
        ],
        "Unusable pairs": [[_Tile(m, m.problem)] for m in members if m.problem],
        "Masks without lesion": [[_Tile(m, "empty")] for m in usable if m.area == 0],
        "Masks without skin": [[_Tile(m, "full")] for m in usable if m.area == 1],
        "Masks that are not binary": [[_Tile(m, "thresholded")] for m in usable if m.thresholded],
        "Masks that seem to be inverted": [
            [_Tile(m, "inverted?")] for m in usable if m.reading and m.reading.looks_inverted
        ],
        "Masks that fit both the upright image and the image as stored": [
            [_Tile(m, "turned" if m.reading.is_turned else "not turned")]
            for m in usable
            if m.reading and m.reading.alignment is Alignment.EITHER
        ],
        "Masks in several components": [
            [_Tile(m, f"{n} components")] for m in fragmented if (n := m.components) > 1
        ],
    }
    limit = f", the first {MAX_PER_SECTION}"
    return {
        f"{title}: {len(tiles)}{limit if len(tiles) > MAX_PER_SECTION else ''}": tiles
        for title, tiles in suspects.items()
        if tiles
    }


def _cluster_tiles(cluster: DuplicateCluster) -> list[_Tile]:
    members = cluster.sorted_members()[:MAX_PER_CLUSTER]
    rest = len(cluster.members) - len(members)
    notes = [""] * len(members)
    notes[0] = "identical" if cluster.exact else f"similarity {cluster.similarity:.2f}"
    notes[-1] = f"and {rest} more" if rest else notes[-1]
    tiles = [_Tile(m, note, _STEP_PX) for m, note in zip(members, notes, strict=True)]
    return [*tiles[:-1], tiles[-1]._replace(rule_px=SIDE_PX)]


def _draw_section(heading: str, suspects: Sequence[Sequence[_Tile]]) -> Pixels:
    rows: list[list[_Tile]] = []
    for tiles in suspects[:MAX_PER_SECTION]:
        if not rows or len(rows[-1]) + len(tiles) > COLUMNS:
            rows.append([])
        rows[-1] += tiles
    size = (COLUMNS * _STEP_PX + GAP_PX, _HEADING_PX + len(rows) * _TILE_PX)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((GAP_PX, 6), heading, "black", ImageFont.load_default(16))
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            x, y = GAP_PX + column * _STEP_PX, _HEADING_PX + row * _TILE_PX
            sheet.paste(_thumbnail(tile.pair.record), (x, y))
            for text in (str(tile.pair), tile.note):
                clipped = truncate_text(draw, text, font, SIDE_PX)
                draw.text((x, y + SIDE_PX), clipped, "black", font)
                y += LINE_PX
            if tile.rule_px:
                rule = (x, y + SIDE_PX, x + tile.rule_px, y + SIDE_PX)
                draw.line(rule, fill=_RULE_COLOUR, width=2)
    return np.asarray(sheet)


def _thumbnail(record: Record) -> Image.Image:
    """Return the image with the outline of its mask in a square; red if it is unreadable."""
    try:
        image, _ = read_image_and_size(record.image, SIDE_PX)
    except InputError:
        return Image.new("RGB", (SIDE_PX, SIDE_PX), _UNREADABLE_COLOUR)
    image = ImageOps.contain(image, (SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    try:
        mask = Image.fromarray(read_true_mask(record).view(np.uint8) * np.uint8(255))
    except InputError:
        mask = Image.new("L", image.size)
    inside = np.asarray(mask.resize(image.size, Image.Resampling.BOX)) >= 128
    overlay = draw_outlines(np.asarray(image), inside, np.zeros_like(inside))
    return ImageOps.pad(Image.fromarray(overlay), (SIDE_PX, SIDE_PX), color=_PAPER_COLOUR)
