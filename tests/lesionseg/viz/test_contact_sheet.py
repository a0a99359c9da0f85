"""Content of the contact sheet, and names that are hard to draw."""

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lesionseg.data.duplicates.leakage import audit_datasets
from lesionseg.viz import contact_sheet
from lesionseg.viz.overlays import TRUE_COLOUR
from lesionseg.viz.trial_sheet import truncate_text
from tests.lesionseg.data.copies import CHANGES, texture
from tests.lesionseg.data.duplicates.test_leakage import put


def draw_sheet(report, path):
    n = contact_sheet.draw_contact_sheet(report, path)
    with Image.open(path) as sheet:
        return n, np.asarray(sheet.convert("RGB")).astype(int)


def test_no_suspects(tmp_path):
    put(tmp_path / "data", "a", texture(0))
    n, sheet = draw_sheet(audit_datasets([tmp_path / "data"]), tmp_path / "s.png")
    assert n == 0
    assert sheet.min() < 100 and sheet.mean() > 240  # a line of text on white


def test_each_kind_of_suspect_has_a_section(tmp_path):
    root = tmp_path / "data"
    for i, name in enumerate("abcdef"):
        put(root, name, texture(i), "train")
    put(root, "z", CHANGES["half the size"](texture(0)), "test")
    put(root, "b2", texture(1), "train")
    (root / "train/images/c.png").write_bytes(b"nothing")
    Image.new("L", (240, 180)).save(root / "train/masks/d.png")
    Image.new("L", (240, 180), 255).save(root / "train/masks/e.png")
    two = np.zeros((180, 240), np.uint8)
    two[9:20, 9:20] = two[50:60, 50:60] = 255
    two[9] = np.where(two[9] > 0, 150, 0)
    Image.fromarray(two).save(root / "train/masks/f.png")
    report = audit_datasets([root])
    assert list(contact_sheet._build_sections(report)) == [
        "Leaks: near-duplicates in two splits or two data sets: 1",
        "Near-duplicates within a split: 1",
        "Unusable pairs: 1",
        "Masks without lesion: 1",
        "Masks without skin: 1",
        "Masks that are not binary: 1",
        "Masks in several components: 1",
    ]
    n, sheet = draw_sheet(report, tmp_path / "s.png")
    assert n == 7
    assert sheet.shape[0] == 7 * (contact_sheet._HEADING_PX + contact_sheet._TILE_PX)
    assert (np.abs(sheet - TRUE_COLOUR).sum(axis=-1) < 30).any()  # the outlines
    assert (np.abs(sheet - (200, 0, 0)).sum(axis=-1) < 30).any()  # the unreadable image
    # The two images of the leak are side by side.
    top, side, gap = contact_sheet._HEADING_PX, contact_sheet.SIDE_PX, contact_sheet.GAP_PX
    left = sheet[top : top + side, gap : gap + side]
    right = sheet[top : top + side, 2 * gap + side : 2 * gap + 2 * side]
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.9


def test_a_long_section_is_truncated(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_PER_SECTION", 3)
    for i in range(5):
        put(tmp_path / "data", f"p{i}", texture(i))
        Image.new("L", (240, 180)).save(tmp_path / "data" / "masks" / f"p{i}.png")
    report = audit_datasets([tmp_path / "data"])
    assert list(contact_sheet._build_sections(report)) == ["Masks without lesion: 5, the first 3"]
    assert draw_sheet(report, tmp_path / "s.jpg")[0] == 5


def test_four_images_of_a_cluster_are_drawn(tmp_path):
    for i in range(6):
        put(tmp_path / "data", f"p{i}", texture(0))
    (section,) = contact_sheet._build_sections(audit_datasets([tmp_path / "data"])).values()
    (suspect,) = section
    assert [str(tile.pair) for tile in suspect] == ["p0", "p1", "p2", "p3"]
    assert [tile.note for tile in suspect] == ["identical", "", "", "and 2 more"]


def test_ambiguous_and_undecodable_names(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        put(root, "twice", texture(0), split)
    for name in ("two\nlines", os.fsdecode(b"latin-\xe9")):
        put(root, name, texture(1), "train")
    report = audit_datasets([root])
    leak, other = contact_sheet._build_sections(report).values()
    assert [str(tile.pair) for tile in leak[0]] == ["twice (train)", "twice (test)"]
    assert [str(tile.pair) for tile in other[0]] == [
        "latin-\\udce9 (train)",
        "two\\nlines (train)",
    ]
    assert draw_sheet(report, tmp_path / "s.png")[0] == 2


def test_a_caption_is_one_printable_line(tmp_path):
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(11)
    assert truncate_text(draw, "a\nb" + os.fsdecode(b"\xff"), font, 500) == "a\\nb\\udcff"
    assert truncate_text(draw, "läsion 日本", font, 500) == "läsion 日本"
