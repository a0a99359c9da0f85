"""Leakage between splits and data sets."""

import json

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.duplicates.audit import audit_cache, audit_dataset
from lesionseg.data.duplicates.leakage import audit_datasets, find_leaks
from lesionseg.data.index import DatasetIndex
from lesionseg.errors import InputError
from tests.lesionseg.data.copies import CHANGES, recompressed, scaled, texture


def put(root, name, image, split=None, ending="png"):
    """Write a pair; the mask is a rectangle."""
    base = root / split if split else root
    for folder in ("images", "masks"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    image.save(base / "images" / f"{name}.{ending}")
    mask = np.zeros((image.height, image.width), np.uint8)
    mask[image.height // 4 : image.height // 2, image.width // 4 : image.width // 2] = 255
    Image.fromarray(mask).save(base / "masks" / f"{name}.png")


@pytest.fixture
def splits(tmp_path):
    """Train a to d, test e to g, without near-duplicates."""
    for i, name in enumerate("abcdefg"):
        put(tmp_path / "data", name, texture(i), "train" if name < "e" else "test")
    return tmp_path / "data"


def names(cluster):
    return [m.record.name for m in cluster.members]


def test_no_near_duplicates_no_leaks(splits):
    report = audit_datasets([splits])
    assert (report.clusters, report.split_groups, report.leaks, report.describe_leaks()) == (
        (),
        (),
        [],
        None,
    )


def test_a_copy_within_a_split_is_no_leak(splits):
    put(splits, "d2", texture(3), "train", "bmp")
    report = audit_datasets([splits])
    assert [names(c) for c in report.clusters] == [["d", "d2"]]
    assert report.clusters[0].exact and report.clusters[0].similarity == 1
    assert str(report.clusters[0]) == "d (train), d2 (train): identical"
    assert report.leaks == [] and report.describe_leaks() is None


def test_leaks_come_first_and_name_data_set_and_split(splits):
    put(splits, "b2", texture(1), "train")
    put(splits, "b3", CHANGES["rotate_90"](texture(1)), "test")
    put(splits, "f2", texture(5), "test")
    report = audit_datasets([splits])
    assert [names(c) for c in report.clusters] == [["b", "b2", "b3"], ["f", "f2"]]
    assert str(report.clusters[0]).startswith("b (train), b3 (test), b2 (train): similarity ")


def test_exact_copies_come_first_among_leaks(splits):
    put(splits, "a2", texture(0), "train")
    put(splits, "d2", recompressed(texture(3), 60), "test")
    put(splits, "d3", texture(40), "train")
    put(splits, "d4", texture(40), "test")
    report = audit_datasets([splits])
    assert [names(c) for c in report.clusters] == [["d3", "d4"], ["d", "d2"], ["a", "a2"]]


def test_a_name_in_two_splits_with_one_image_is_a_leak(splits):
    put(splits, "a", texture(0), "test", "jpg")
    report = audit_datasets([splits])
    message = "1 image is in two official splits: a (train), a (test): similarity "
    assert report.describe_leaks().startswith(message) and report.split_groups == ()
    data = json.loads(json.dumps(report.to_dict()))
    assert [(p["name"], p["split"]) for p in data["duplicates"][0]["images"]] == [
        ("a", "train"),
        ("a", "test"),
    ]
    assert len(data["sets"][0]["areas"]) == data["sets"][0]["pairs"] == 8
    assert {"train/a", "test/a", "b"} <= set(data["sets"][0]["areas"])


def test_a_name_in_two_splits_with_two_images_is_no_leak(splits):
    put(splits, "a", texture(30), "test")
    report = audit_datasets([splits])
    assert (report.clusters, report.split_groups, report.describe_leaks()) == ((), (), None)


def test_leaks_within_and_between_data_sets_are_counted_separately(splits, tmp_path):
    other = tmp_path / "other"
    put(splits, "b2", texture(1), "test")
    put(other, "x1", texture(50), "train")
    assert audit_datasets([splits, other]).describe_leaks() == (
        "1 image is in two official splits: b (data train), b2 (data test): identical"
    )
    put(other, "x2", texture(4), "test")
    put(other, "x3", texture(50), "val")
    assert audit_datasets([splits, other]).describe_leaks() == (
        "1 image is in two data sets: e (data test), x2 (other test): identical; "
        "2 images are in two official splits: b (data train), b2 (data test): identical; "
        "x1 (other train), x3 (other val): identical"
    )


def test_a_missing_data_set_is_reported_before_any_is_read(splits, tmp_path):
    read = []
    with pytest.raises(InputError) as caught:
        audit_datasets([splits, tmp_path / "no"], on_progress=lambda *call: read.append(call))
    assert str(caught.value) == (
        f"data: no such folder: {tmp_path}/no; --data, DIR and --against take the folder of a "
        f"data set or a CSV manifest"
    )
    assert read == []


def test_data_sets_with_equal_names_are_named_with_their_parents(splits, tmp_path):
    other = tmp_path / "deep" / "data"
    put(other, "x", texture(50))
    assert list(audit_datasets([splits, other]).audits) == [f"{tmp_path.name}-data", "deep-data"]


def test_a_data_set_against_itself_is_refused(splits):
    with pytest.raises(InputError, match="is given twice; give each data set once"):
        audit_datasets([splits, splits.parent / "." / "data"])


def test_a_group_in_two_official_splits_is_found(splits):
    rows = ["image,mask,group,split"]
    for name, group, split in (("a", "p", "train"), ("b", "p", "train"), ("c", "q", "train")):
        rows.append(f"train/images/{name}.png,train/masks/{name}.png,{group},{split}")
    for name, group, split in (("e", "q", "test"), ("f", "r", "val"), ("g", "q", "val")):
        rows.append(f"test/images/{name}.png,test/masks/{name}.png,{group},{split}")
    (splits / "manifest.csv").write_text("\n".join(rows))
    with pytest.raises(InputError, match="1 groups lie in two official splits"):
        DatasetIndex.read(splits)
    report = audit_datasets([splits])
    assert [(t.group, t.splits) for t in report.split_groups] == [("q", ("train", "val", "test"))]
    assert (
        report.describe_leaks() == "1 group is in two official splits: q in train and val and test"
    )
    assert report.to_dict()["leaks"] == 1


def test_unusable_pairs_are_skipped(splits):
    (splits / "train/images/b.png").write_bytes(b"nothing")
    (splits / "test/masks/f.png").write_bytes(b"")
    put(splits, "z", texture(0), "test")
    report = audit_datasets([splits])
    assert [names(c) for c in report.leaks] == [["a", "z"]]
    assert len(report.audits[""].problems) == 2


def test_images_of_all_pixel_formats_are_compared(tmp_path):
    image = texture(9)
    put(tmp_path, "rgb", image)
    put(tmp_path, "alpha", image.convert("RGBA"))
    put(tmp_path, "grey", image.convert("L"))
    put(tmp_path, "palette", image.quantize(128))
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    put(tmp_path, "deep", Image.fromarray(deep))
    put(tmp_path, "stranger", texture(10))
    (cluster,) = audit_datasets([tmp_path]).clusters
    assert names(cluster) == ["alpha", "deep", "grey", "palette", "rgb"]


def test_images_without_structure_match_only_if_equal(tmp_path):
    """For every file format and cache size."""
    root, size = tmp_path / "frames", (320, 240)
    put(root, "black", Image.new("RGB", size))
    put(root, "black_jpeg", Image.new("RGB", size), ending="jpg")
    put(root, "turned", Image.new("RGB", size[::-1]))
    put(root, "larger", Image.new("RGB", (640, 480)))
    pixels = np.full((*size[::-1], 3), 200, np.uint8)
    put(root, "bright", Image.fromarray(pixels))
    pixels[5, 5] = 190
    put(root, "speck", Image.fromarray(pixels))
    put(root, "texture", texture(0))
    index = DatasetIndex.read(root)
    for image_size in (None, 16, 64):
        if image_size is None:
            report = audit_datasets([root])
        else:
            cache = build_cache(index, image_size, tmp_path / "cache")
            report = find_leaks({"": audit_cache(index, cache)})
        (cluster,) = report.clusters
        assert names(cluster) == ["black", "black_jpeg"] and cluster.exact


@pytest.mark.parametrize("image_size", [None, 16, 64])
def test_images_that_are_equal_only_when_reduced_are_not_exact(tmp_path, image_size):
    """A checkerboard of pixels vanishes when a JPEG is decoded at half its size."""
    smooth = np.asarray(texture(4, (480, 480)).resize((960, 960))).astype(int).clip(20, 230)
    y, x = np.mgrid[:960, :960]
    checker = smooth + ((x + y) % 2 * 20 - 10)[..., None]
    for name, pixels in (("a", smooth), ("a2", smooth), ("b", checker)):
        image = Image.fromarray(pixels.astype(np.uint8))
        put(tmp_path / "data", name, image)
        (tmp_path / "data" / "images" / f"{name}.png").unlink()
        image.save(tmp_path / "data" / "images" / f"{name}.jpg", quality=95, subsampling=0)
    index = DatasetIndex.read(tmp_path / "data")
    if image_size is None:
        audit = audit_dataset(index)
    else:
        audit = audit_cache(index, build_cache(index, image_size, tmp_path / "cache"))
    digests = [pair.fingerprint.digest for pair in audit.pairs]
    assert digests[0] == digests[1] == digests[2]  # precondition
    (cluster,) = find_leaks({"": audit}).clusters
    assert names(cluster) == ["a", "a2", "b"]
    assert not cluster.exact and cluster.similarity > 0.99
    (tmp_path / "data" / "images" / "b.jpg").unlink()
    assert audit_datasets([tmp_path / "data"]).clusters[0].exact


def test_the_json_is_complete(splits):
    put(splits, "z", recompressed(texture(2), 60), "test", "jpg")
    (splits / "train/images/b.png").write_bytes(b"nothing")
    Image.new("L", (240, 180)).save(splits / "train/masks/a.png")
    Image.new("L", (240, 180), 255).save(splits / "train/masks/d.png")
    two = np.zeros((180, 240), np.uint8)
    two[0:9, 0:9] = two[50:60, 50:60] = 255
    Image.fromarray(two).save(splits / "test/masks/f.png")
    Image.new("L", (9, 9)).save(splits / "test/masks/orphan_mask.png")
    data = audit_datasets([splits]).to_dict()
    assert json.loads(json.dumps(data)) == data
    (each,) = data["sets"]
    assert each["set"] == "" and each["root"] == str(splits) and each["layout"] == "folders"
    assert (each["pairs"], each["groups"]) == (8, 8)
    assert each["official_splits"] == {"train": 4, "test": 4}
    assert each["sizes"] == [{"height": 180, "width": 240, "images": 7}]
    assert [b["name"] for b in each["unusable"]] == ["b"]
    assert (each["empty"], each["full"], each["not_binary"]) == (["a"], ["d"], [])
    assert each["on_border"] == ["d", "f"] and each["components"] == {"f": 2}
    assert each["masks_without_image"] == ["orphan_mask.png"]
    assert each["areas"]["f"] == pytest.approx(181 / (180 * 240))
    (cluster,) = data["duplicates"]
    assert cluster["leak"] is True and cluster["exact"] is False
    assert cluster["images"] == [
        {"set": "", "name": "c", "split": "train", "group": "c"},
        {"set": "", "name": "z", "split": "test", "group": "z"},
    ]
    assert data["leaks"] == 1 and data["split_groups"] == []


# --- from a cache ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 100])
def test_the_cache_gives_the_same_result_as_the_files(splits, tmp_path, size):
    put(splits, "z", recompressed(scaled(texture(2), 0.5), 60), "test", "jpg")
    put(splits, "b2", texture(1), "test")
    put(splits, "c3", CHANGES["rotate_270"](texture(2)), "train")
    soft = Image.new("L", (240, 180))
    soft.paste(255, (60, 45, 120, 90))
    soft.paste(150, (60, 44, 120, 45))
    soft.save(splits / "train" / "masks" / "d.png")
    index = DatasetIndex.read(splits)
    audit = audit_cache(index, build_cache(index, size, tmp_path / "cache"))
    report = find_leaks({"": audit})
    assert [names(c) for c in report.clusters] == [["b", "b2"], ["c", "c3", "z"]]
    assert report.clusters[0].exact
    files = audit_dataset(index)
    assert [p.record.name for p in audit.pairs] == [p.record.name for p in files.pairs]
    assert [p.shape for p in audit.pairs] == [p.shape for p in files.pairs]
    assert [p.area for p in audit.pairs] == [p.area for p in files.pairs]
    assert [p.record.name for p in audit.pairs if p.thresholded] == ["d"]
    assert [p.record.name for p in files.pairs if p.thresholded] == ["d"]
    assert [p.components for p in audit.pairs] == [1] * len(files.pairs)
    assert not any(p.touches_border for p in audit.pairs)


@pytest.mark.parametrize("size", [16, 64, 96, 200])
def test_near_duplicates_do_not_depend_on_the_size_of_the_cache(tmp_path, size):
    """Else the split of a study would depend on its image size."""
    for k in range(3):
        put(tmp_path / "data", f"large{k}", texture(k, (960, 720)), ending="jpg")
    index = DatasetIndex.read(tmp_path / "data")
    files = audit_dataset(index)
    for attempt in range(2):  # read from the files, then from the stored thumbnails
        audit = audit_cache(index, build_cache(index, size, tmp_path / "cache"))
        for cached, read in zip(audit.pairs, files.pairs, strict=True):
            assert np.array_equal(cached.fingerprint.thumb, read.fingerprint.thumb), attempt
            assert np.array_equal(cached.fingerprint.hashes, read.fingerprint.hashes)
    (kept,) = (tmp_path / "cache").glob("*-thumbnails.npy")
    kept.write_bytes(b"damaged")
    audit_cache(index, build_cache(index, size, tmp_path / "cache"))
    assert np.load(kept).shape == (3, 64, 64)
