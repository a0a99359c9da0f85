"""Audit of data sets with and without defects."""

import os

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.duplicates.audit import audit_dataset
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError
from tests.conftest import write_folder


def put(root, name, mask, split="train"):
    """Write a pair with this mask."""
    mask = np.asarray(mask, dtype=np.uint8)
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    image = np.full((*mask.shape, 3), 120, np.uint8)
    Image.fromarray(image).save(root / split / "images" / f"{name}.png")
    Image.fromarray(mask).save(root / split / "masks" / f"{name}_mask.png")


def blank(height=20, width=40):
    return np.zeros((height, width), np.uint8)


def boxed(top, bottom, left, right, value=255):
    mask = blank()
    mask[top:bottom, left:right] = value
    return mask


def audit(root, **options):
    return audit_dataset(DatasetIndex.read(root, lenient=True), **options)


@pytest.fixture
def sound(tmp_path):
    """Seven usable pairs in two splits, with different masks."""
    root = tmp_path / "sound"
    put(root, "a_plain", boxed(5, 15, 10, 30))  # 200 of 800 pixels
    put(root, "b_corner", boxed(0, 10, 0, 20))
    put(root, "c_bottom", boxed(19, 20, 10, 18))
    put(root, "d_empty", blank())
    put(root, "e_full", boxed(0, 20, 0, 40), "test")
    soft = boxed(5, 15, 10, 30)
    soft[5, 10:30] = 140
    put(root, "f_soft", soft, "test")
    put(root, "g_tall", blank(40, 20), "test")
    return root


def test_the_properties_of_each_pair(sound):
    assert [
        (p.record.name, p.shape, p.area, p.touches_border, p.thresholded, p.components)
        for p in audit(sound).pairs
    ] == [
        ("a_plain", (20, 40), 0.25, False, False, 1),
        ("b_corner", (20, 40), 0.25, True, False, 1),
        ("c_bottom", (20, 40), 0.01, True, False, 1),
        ("d_empty", (20, 40), 0.0, False, False, 0),
        ("e_full", (20, 40), 1.0, True, False, 1),
        ("f_soft", (20, 40), 0.25, False, True, 1),
        ("g_tall", (40, 20), 0.0, False, False, 0),
    ]


def test_the_summary_of_a_data_set(sound):
    found = audit(sound)
    assert found.problems == []
    found.require_usable()
    # Areas 0, 0, 0.01, 0.25, 0.25, 0.25, 1; percentile 95 lies 0.7 of the way to the last.
    assert found.summarize() == {
        "layout": "folders",
        "pairs": "7",
        "groups": "7",
        "official split": "train 4, test 3",
        "unusable pairs": "0",
        "sizes": "2, most often 40x20 (6)",
        "lesion area": "median 25.0%, 5 to 95%: 0.0% to 77.5%",
        "masks read from": "colours 7",
        "empty masks": "2, d_empty, g_tall",
        "full masks": "1, e_full",
        "lesions on the border": "42.9%",
        "several components": "0",
        "masks not binary": "1, thresholded at 128: f_soft",
    }


@pytest.mark.parametrize(
    ("row", "column", "touches"),
    [(0, 7, True), (19, 7, True), (7, 0, True), (7, 39, True), (1, 38, False)],
)
def test_one_pixel_on_any_border_touches_it(tmp_path, row, column, touches):
    mask = blank()
    mask[row, column] = 255
    put(tmp_path / "data", "a", mask)
    (pair,) = audit(tmp_path / "data").pairs
    assert pair.touches_border is touches and pair.area == 1 / 800


def test_components_are_8_connected(tmp_path):
    for name, left in (("a_touching", 10), ("b_apart", 11)):
        mask = boxed(2, 10, 2, 10)
        mask[10:14, left : left + 6] = 255
        put(tmp_path / "data", name, mask)
    assert [pair.components for pair in audit(tmp_path / "data").pairs] == [1, 2]


def test_masks_without_an_image_are_counted_and_named(tmp_path):
    for split, names in (("train", "abcd"), ("test", "ef")):
        for name in names:
            put(tmp_path / "data", name, boxed(5, 15, 10, 30), split)
    for name in ("train/images/b.png", "train/images/c.png", "test/images/f.png"):
        (tmp_path / "data" / name).unlink()
    # Not counted: a second mask of an image, other files, hidden files.
    (tmp_path / "data/train/masks/a_mask.png").rename(tmp_path / "data/train/masks/a.png")
    for name in ("a_seg.png", "notes.txt", "._x.png"):
        (tmp_path / "data/train/masks" / name).write_bytes(b"x")
    found = audit(tmp_path / "data")
    assert found.summarize()["masks without image"] == "3, f_mask.png, b_mask.png, c_mask.png"
    assert found.index.masks_without_image == ("f_mask.png", "b_mask.png", "c_mask.png")
    assert list(found.to_dict()["areas"]) == ["a", "d", "e"]


def test_a_manifest_may_omit_masks(sound):
    rows = "train/images/a_plain.png,train/masks/a_plain_mask.png\n"
    (sound / "manifest.csv").write_text(f"image,mask\n{rows}")
    assert audit(sound).index.masks_without_image == ()


def test_a_broken_link_makes_a_pair_unusable(tmp_path):
    root = write_folder(tmp_path / "data", 3)
    for path in (root / "images/im001.png", root / "masks/im002.png"):
        path.unlink()
        path.symlink_to(tmp_path / "gone.png")
    assert audit(root).problems == [
        f"{root}/images/im001.png: no such file",
        f"{root}/masks/im002.png: no such file",
    ]


def test_a_name_in_two_splits_is_prefixed_with_its_split(sound):
    put(sound, "a_plain", boxed(0, 1, 0, 1), "test")
    put(sound, "d_empty", boxed(0, 1, 0, 1), "test")
    found = audit(sound)
    areas = found.to_dict()["areas"]
    assert len(areas) == 9 and list(areas)[:2] == ["train/a_plain", "test/a_plain"]
    assert (areas["train/a_plain"], areas["test/a_plain"]) == (0.25, 1 / 800)
    assert found.summarize()["empty masks"] == "2, train/d_empty, g_tall"


def test_names_with_line_breaks_or_invalid_bytes_are_escaped(tmp_path):
    put(tmp_path / "data", "two\nlines", blank())
    put(tmp_path / "data", os.fsdecode(b"latin-\xe9"), blank())
    put(tmp_path / "data", "broken\n", blank())
    (tmp_path / "data/train/images/broken\n.png").write_bytes(b"")
    found = audit(tmp_path / "data")
    assert found.summarize()["empty masks"] == "2, latin-\\udce9, two\\nlines"
    (problem,) = found.problems
    assert problem.startswith(f"{tmp_path}/data/train/images/broken\\n.png: not an image (")


def test_every_defect_is_reported(tmp_path):
    root = write_folder(tmp_path / "data", 6)
    image = root / "images/im001.png"
    image.write_bytes(image.read_bytes()[:300])
    Image.new("L", (47, 40)).save(root / "masks/im002.png")
    Image.linear_gradient("L").resize((48, 40)).save(root / "masks/im003.png")
    (root / "images/im004.png").write_text("not an image")
    calls = []
    found = audit(root, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]
    problems = {p.record.name: p.problem for p in found.pairs if p.problem}
    assert list(problems) == ["im001", "im002", "im003", "im004"]
    assert problems["im001"].startswith(f"{image}: the image is damaged (")
    assert problems["im002"].startswith(f"{root}/masks/im002.png: the mask has 47x40 pixels, its")
    assert problems["im003"].startswith(f"{root}/masks/im003.png: the mask is not binary: ")
    assert problems["im004"].startswith(f"{root}/images/im004.png: not an image (")
    assert found.problems == list(problems.values())
    summary = found.summarize()
    assert summary["pairs"] == "6" and summary["unusable pairs"] == "4"
    assert summary["sizes"] == "1, most often 48x40 (2)"  # of the usable ones
    with pytest.raises(InputError) as caught:
        found.require_usable()
    assert str(caught.value) == (
        f"data: 4 of 6 pairs cannot be used: {problems['im001']} and 3 more"
    )


def test_a_data_set_without_usable_pairs_has_a_summary(tmp_path):
    root = write_folder(tmp_path / "data", 2)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"")
    assert audit(root).summarize() == {
        "layout": "folders",
        "pairs": "2",
        "groups": "2",
        "official split": "none",
        "unusable pairs": "2",
    }


def test_the_pixels_of_an_image_are_decoded(tmp_path):
    """A truncated JPEG has an intact header."""
    root = write_folder(tmp_path / "data", 1)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    (root / "images/im000.png").unlink()
    path = root / "images/im000.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    (problem,) = audit(root).problems
    assert problem.startswith(f"{path}: the image is damaged (")


def test_real_ph2_images_have_no_defects(real_data):
    found = audit(real_data / "ph2")
    assert found.problems == []
    summary = found.summarize()
    assert summary["layout"] == "ph2" and summary["pairs"] == summary["groups"] == "10"
    assert summary["empty masks"] == summary["full masks"] == summary["masks not binary"] == "0"
    for pair, record in zip(found.pairs, found.index.records, strict=True):
        with Image.open(record.mask) as mask:
            assert pair.shape == (mask.height, mask.width)
            share = sum(mask.convert("L").histogram()[1:]) / (mask.height * mask.width)
        assert pair.area == pytest.approx(share)
