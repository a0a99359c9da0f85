"""`lesionsearch data check` from the command line: output, files and exit codes."""

import json
import os

import pytest
from PIL import Image

from tests.lesionseg.data.copies import recompressed, scaled, texture
from tests.lesionseg.data.duplicates.test_leakage import put
from tests.lesionseg.data.test_image_io import HELD, ODD_TAGS, with_tags
from tests.test_cli import run


@pytest.fixture
def splits(tmp_path):
    for i in range(8):
        put(tmp_path / "data", f"p{i}", texture(i), "train" if i < 5 else "test")
    return tmp_path / "data"


def plant(root):
    put(root, "planted", recompressed(scaled(texture(1), 0.6), 50), "test", "jpg")


def test_data_without_leaks_exit_with_0(splits):
    out = run("data", "check", splits).stdout
    assert "near-duplicates: none" in out
    assert "official split         train 5, test 3" in out


def test_a_planted_copy_exits_with_1_and_is_in_the_output_and_files(splits, tmp_path):
    plant(splits)
    paths = [tmp_path / "a.json", tmp_path / "a.png"]
    done = run("data", "check", splits, "--json", paths[0], "--sheet", paths[1], code=1)
    assert "leak: p1 (train), planted (test): similarity 0." in done.stdout
    assert done.stderr.startswith(
        "lesionsearch: data check: 1 image is in two official splits: p1 (train), planted"
    )
    assert done.stderr.count("\n") == 1
    data = json.loads(paths[0].read_text())
    assert data["leaks"] == 1
    assert [p["name"] for p in data["duplicates"][0]["images"]] == ["p1", "planted"]
    with Image.open(paths[1]) as sheet:
        assert sheet.width > 1000


@pytest.mark.parametrize(
    ("option", "file", "message"),
    [
        ("--json", "no/a.json", "name a file in an existing, writable folder"),
        ("--json", "data", "name a file in an existing, writable folder"),
        ("--sheet", "no/a.png", "name a file in an existing, writable folder"),
        ("--sheet", "a.txt", "must end in .png or .jpg"),
        ("--sheet", "sheet", "must end in .png or .jpg"),
    ],
)
def test_an_unwritable_file_is_reported_before_reading(splits, tmp_path, option, file, message):
    (splits / "train" / "images" / "p0.png").write_bytes(b"nothing")  # reported only after reading
    done = run("data", "check", splits, option, tmp_path / file, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"lesionsearch: {option}: {tmp_path / file}")
    assert (message in done.stderr, done.stderr.count("\n")) == (True, 1)


def test_against_is_repeatable(splits, tmp_path):
    put(tmp_path / "first", "a", texture(20))
    put(tmp_path / "second", "b", scaled(texture(6), 2))
    run("data", "check", splits, "--against", tmp_path / "first")
    more = ["--against", tmp_path / "first", "--against", tmp_path / "second"]
    done = run("data", "check", splits, *more, code=1)
    assert "1 image is in two data sets: p6 (data test), b (second)" in done.stderr
    assert done.stdout.index("data\n") < done.stdout.index("first\n") < done.stdout.index("second")


def test_unusable_pairs_exit_with_2_and_leaks_with_1(splits):
    (splits / "train" / "images" / "p0.png").write_bytes(b"nothing")
    done = run("data", "check", splits, code=2)
    assert "1 of 8 pairs cannot be used" in done.stderr
    plant(splits)
    done = run("data", "check", splits, code=1)
    assert "p1 (train), planted (test)" in done.stderr
    assert done.stderr.strip().endswith("; and 1 pairs cannot be used")


def test_unusable_pairs_of_another_data_set_exit_with_2(splits, tmp_path):
    other = tmp_path / "other"
    for i in range(2):
        put(other, f"q{i}", texture(20 + i))
    (other / "images" / "q1.png").write_bytes(b"nothing")
    done = run("data", "check", splits, "--against", other, code=2)
    assert f"1 of 2 pairs cannot be used: {other}/images/q1.png: not an image" in done.stderr


def test_a_broken_link_exits_with_2_and_is_refused_by_run(splits, tmp_path):
    image = splits / "train" / "images" / "p0.png"
    image.unlink()
    image.symlink_to("/nowhere/p0.png")
    done = run("data", "check", splits, code=2)
    assert f"1 of 8 pairs cannot be used: {image}: no such file" in done.stderr
    done = run("run", "quick", "--data", splits, "--out", tmp_path / "s", code=2)
    assert "1 files are links to missing files: p0.png -> /nowhere/p0.png" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_given_layout_is_read(splits):
    (splits / "manifest.csv").write_text("image,mask\ntrain/images/p0.png,train/masks/p0.png\n")
    assert "pairs                  1 " in run("data", "check", splits).stdout
    out = run("data", "check", splits, "--layout", "folders").stdout
    assert "layout                 folders" in out and "pairs                  8 " in out


def test_an_invalid_exif_tag_is_ignored(tmp_path):
    root = tmp_path / "data"
    put(root, "a", texture(0))
    put(root, "b", texture(1))
    (root / "images" / "b.png").unlink()
    stored = texture(1).transpose(Image.Transpose.ROTATE_90)
    with_tags(
        root / "images" / "b.jpg", stored, *sorted([HELD, ODD_TAGS["an EXIF folder as text"]])
    )
    done = run("data", "check", root)
    assert "unusable pairs         0" in done.stdout and done.stderr == ""


def test_masks_of_skin_are_warned_of_and_masks_without_skin_are_refused(tmp_path):
    root = tmp_path / "data"
    for i in range(4):
        put(root, f"p{i}", texture(i))
    for path in (root / "masks").iterdir():
        with Image.open(path) as mask:
            mask.point(range(255, -1, -1)).save(path)
    found = tmp_path / "a.json"
    out = run("data", "check", root, "--json", found).stdout
    assert "the masks seem to be inverted: in 4 of 4 images" in out
    assert json.loads(found.read_text())["sets"][0]["seem_inverted"] == ["p0", "p1", "p2", "p3"]
    out = run("data", "check", root, "--invert-masks", "--json", found).stdout
    assert "seem to be inverted" not in out
    assert json.loads(found.read_text())["sets"][0]["areas"]["p0"] == pytest.approx(1 / 16)
    for path in (root / "masks").iterdir():
        Image.new("L", (240, 180), 255).save(path)
    done = run("data", "check", root, code=2)
    assert "none of 4 masks shows both lesion and skin: 4 are all lesion" in done.stderr
    assert done.stderr.count("\n") == 1


def test_undecodable_names_are_in_the_output_and_files(tmp_path):
    root = tmp_path / "data"
    for name in ("two\nlines", os.fsdecode(b"latin-\xe9")):
        put(root, name, texture(0))
    files = ["--json", tmp_path / "a.json", "--sheet", tmp_path / "a.png"]
    out = run("data", "check", root, *files).stdout
    assert "  latin-\\udce9, two\\nlines: identical\n" in out
    (cluster,) = json.loads((tmp_path / "a.json").read_text())["duplicates"]
    assert [p["name"] for p in cluster["images"]] == [os.fsdecode(b"latin-\xe9"), "two\nlines"]


def test_leaks_are_refused_by_run(splits, tmp_path):
    plant(splits)
    done = run("run", "quick", "--data", splits, "--out", tmp_path / "s", code=2)
    assert "1 image is in two official splits: p1 (train), planted (test)" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_copy_planted_into_real_images_is_the_only_leak(real_data, tmp_path):
    """155 images of 115 lesions, and a smaller recompressed copy of one in the other split."""
    source = real_data / "ham10000"
    images = sorted(source.glob("HAM10000_images_part_*/*.jpg"))
    masks = source / "HAM10000_segmentations_lesion_tschandl"
    metadata = (source / "HAM10000_metadata").read_text().splitlines()[1:]
    lesion = {row.split(",")[1]: row.split(",")[0] for row in metadata}
    rows = ["image,mask,group,split"]
    for image in images:
        group = lesion[image.stem]
        split = "test" if sum(map(ord, group)) % 4 == 0 else "train"
        rows.append(f"{image},{masks / image.stem}_segmentation.png,{group},{split}")
    train = next(row.split(",") for row in rows[1:] if row.endswith("train"))
    with Image.open(train[0]) as picture:
        recompressed(scaled(picture.convert("RGB"), 0.5), 40).save(tmp_path / "planted.jpg")
    with Image.open(train[1]) as mask:
        mask.resize((166, 125)).save(tmp_path / "planted.png")
    (tmp_path / "clean.csv").write_text("\n".join(rows))
    run("data", "check", tmp_path / "clean.csv")
    rows.append(f"{tmp_path}/planted.jpg,{tmp_path}/planted.png,planted,test")
    (tmp_path / "leaky.csv").write_text("\n".join(rows))
    done = run("data", "check", tmp_path / "leaky.csv", code=1)
    assert "1 image is in two official splits: ISIC_" in done.stderr
    assert "planted (test)" in done.stderr
