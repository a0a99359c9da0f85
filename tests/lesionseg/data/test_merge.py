"""Several data sets as one index: names, groups, order, and what must not be mixed up."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.merge import label_roots
from lesionseg.data.split import make_split
from lesionseg.errors import InputError
from tests.conftest import write_pair

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def put(root, *names):
    """Write pairs with different contents."""
    for name in names:
        for folder in ("images", "masks"):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{root.name} {name}")
    return root


def put_challenge(root, **parts):
    """Write ISIC 2018's folders with the given image numbers."""
    words = {"train": "Training", "val": "Validation", "test": "Test"}
    for part, numbers in parts.items():
        for number in numbers:
            name = f"ISIC_{number:07}"
            images = root / f"ISIC2018_Task1-2_{words[part]}_Input"
            masks = root / f"ISIC2018_Task1_{words[part]}_GroundTruth"
            for folder, file in ((images, f"{name}.jpg"), (masks, f"{name}_segmentation.png")):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(name)
    return root


def put_ham(root, lesions):
    """Write HAM10000 with the lesion of each image number."""
    rows = ["lesion_id,image_id"]
    images, masks = root / "HAM10000_images_part_1", root / "HAM10000_segmentations_lesion_tschandl"
    for number, lesion in lesions.items():
        name = f"ISIC_{number:07}"
        rows.append(f"{lesion},{name}")
        for folder, file in ((images, f"{name}.jpg"), (masks, f"{name}_segmentation.png")):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(f"ham {name}")
    (root / "HAM10000_metadata").write_text("\n".join(rows) + "\n")
    return root


def groups_of(index):
    return {r.name: r.group for r in index.records}


def refusal(*roots):
    with pytest.raises(InputError) as caught:
        DatasetIndex.read(roots)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names and groups ----------------------------------------------------------------------------


def test_unrelated_data_sets_keep_their_names(tmp_path):
    one, two = put(tmp_path / "one", "b", "a"), put(tmp_path / "two", "c")
    index = DatasetIndex.read((one, two))
    rows = [(r.name, r.group, r.dataset, r.source, r.split) for r in index.records]
    assert rows == [
        ("a", "a", "one", "one", None),
        ("b", "b", "one", "one", None),
        ("c", "c", "two", "two", None),
    ]
    assert (index.root, index.layout) == (tmp_path, "folders")


def test_a_single_data_set_is_unchanged(tmp_path):
    put(tmp_path / "one", "b", "a")
    alone = DatasetIndex.read(tmp_path / "one")
    assert DatasetIndex.read((tmp_path / "one",)) == alone
    assert {(r.dataset, r.source) for r in alone.records} == {("", "")}


def test_a_common_name_is_prefixed_and_joins_the_groups(tmp_path):
    one, two = put(tmp_path / "one", "x", "a"), put(tmp_path / "two", "X", "c")
    index = DatasetIndex.read((one, two))
    groups = groups_of(index)
    assert set(groups) == {"one-x", "a", "two-X", "c"}
    assert groups["one-x"] == groups["two-X"]
    assert len(set(groups.values())) == 3
    for r in index.records:
        assert r.image.read_text() == f"{r.dataset} {r.image.stem}"  # each its own file


def test_a_lesion_of_ham10000_and_isic2018_is_one_group(tmp_path):
    ham = put_ham(tmp_path / "ham", {1: "HAM_1", 2: "HAM_1", 3: "HAM_2", 9: "HAM_9"})
    isic = put_challenge(tmp_path / "isic", train=[2, 3, 4])
    groups = groups_of(DatasetIndex.read((ham, isic)))
    same = {"ISIC_0000001", "ham-ISIC_0000002", "isic-ISIC_0000002"}
    assert len({groups[name] for name in same}) == 1
    assert groups["ham-ISIC_0000003"] == groups["isic-ISIC_0000003"]
    assert len(set(groups.values())) == 4


def test_equal_patient_ids_of_two_data_sets_are_two_groups(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name, f"{name}1", f"{name}2")
        rows = [f"images/{name}{i}.png,masks/{name}{i}.png,patient 7\n" for i in (1, 2)]
        (tmp_path / name / "manifest.csv").write_text("image,mask,group\n" + "".join(rows))
    groups = groups_of(DatasetIndex.read((tmp_path / "one", tmp_path / "two")))
    assert groups["one1"] == groups["one2"]
    assert groups["two1"] == groups["two2"]
    assert groups["one1"] != groups["two1"]


def test_indirectly_connected_groups_are_joined(tmp_path):
    """a and b share a lesion in one, b and c in two, c and d in three."""
    for home, (first, second) in {"one": "ab", "two": "bc", "three": "cd"}.items():
        put(tmp_path / home, first, second)
        rows = [f"images/{n}.png,masks/{n}.png,g\n" for n in (first, second)]
        (tmp_path / home / "manifest.csv").write_text("image,mask,group\n" + "".join(rows))
    roots = [tmp_path / home for home in ("one", "two", "three")]
    found = {
        tuple(sorted(groups_of(DatasetIndex.read(order)).items()))
        for order in itertools.permutations(roots)
    }
    assert len(found) == 1
    assert len({group for _, group in found.pop()}) == 1


def test_the_order_of_data_sets_does_not_matter(tmp_path):
    roots = (
        put_ham(tmp_path / "ham", {1: "HAM_1", 2: "HAM_1", 3: "HAM_2"}),
        put_challenge(tmp_path / "isic", train=[2, 3, 4], test=[8]),
        put(tmp_path / "own", "a", "ISIC_0000008"),
    )
    found = [DatasetIndex.read(order) for order in itertools.permutations(roots)]
    assert len({index.records for index in found}) == 1
    assert len({index.fingerprint() for index in found}) == 1


@pytest.mark.parametrize("root", ["ham", "isic"])
def test_the_fingerprint_covers_all_data_sets(tmp_path, root):
    roots = (
        put_ham(tmp_path / "ham", {1: "HAM_1", 2: "HAM_1"}),
        put_challenge(tmp_path / "isic", train=[3, 4]),
    )
    before = DatasetIndex.read(roots).fingerprint()
    picture = next(p for p in (tmp_path / root).rglob("*.jpg"))
    picture.write_text(picture.read_text() + " and more")
    assert DatasetIndex.read(roots).fingerprint() != before


def test_labels_are_the_shortest_distinct_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert label_roots([Path("a/isic"), Path("b/ph2")]) == ["isic", "ph2"]
    assert label_roots([Path("a/data"), Path("b/data")]) == ["a-data", "b-data"]
    assert label_roots([Path("a/data"), Path("b/data"), Path("c")]) == ["a-data", "b-data", "c"]
    assert label_roots([Path("/data"), Path("/x/data")])[1] == "x-data"


def test_the_set_column_of_a_manifest(tmp_path):
    put(tmp_path, "a", "b", "c")
    rows = "images/a.png,masks/a.png,ph2\nimages/b.png,masks/b.png,isic\nimages/c.png,masks/c.png,"
    (tmp_path / "manifest.csv").write_text(f"image,mask,set\n{rows}\n")
    assert [r.dataset for r in DatasetIndex.read(tmp_path).records] == ["ph2", "isic", ""]


# --- what is refused -----------------------------------------------------------------------------


def test_manifest_groups_are_stripped_and_optional(tmp_path):
    for name in "abcd":
        write_pair(tmp_path, name)
    rows = ["image,mask,group"]
    for name, group in zip("abcd", ("p 3", " p 3 ", "", "  "), strict=True):
        rows.append(f"images/{name}.png,masks/{name}.png,{group}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    index = DatasetIndex.read(tmp_path)
    assert [r.group for r in index.records] == ["p 3", "p 3", "c", "d"]


def test_a_repeated_data_set_is_refused(tmp_path):
    one, two = put(tmp_path / "one", "a"), put(tmp_path / "two", "b")
    assert refusal(one, two, tmp_path / "two" / ".." / "one").endswith(
        "one is given twice; give each data set once"
    )


def test_overlapping_data_sets_are_refused(tmp_path):
    one = put(tmp_path / "one", "a", "b")
    rows = "image,mask\nimages/a.png,masks/a.png\n"
    (tmp_path / "one" / "some.csv").write_text(rows)
    rows = refusal(one, tmp_path / "one" / "some.csv")
    assert rows == (
        "--data: 1 images of some.csv are also part of one: a.png; give folders that do not overlap"
    )


@pytest.mark.parametrize("other", ["nowhere", "empty"])
def test_an_invalid_data_set_is_named(tmp_path, other):
    (tmp_path / "empty").mkdir()
    one = put(tmp_path / "one", "a")
    assert str(tmp_path / other) in refusal(one, tmp_path / other)


# --- parts ---------------------------------------------------------------------------------------


def parts_of(index, **settings):
    """Return the part of each record by name."""
    areas = np.linspace(0.1, 0.9, len(index.records))
    split = make_split(index.records, areas, SHARES, **settings)
    parts = {name: part for part in SHARES for name in getattr(split, part)}
    assert len(parts) == sum(len(getattr(split, part)) for part in SHARES)
    return parts


@pytest.mark.parametrize("kfold", [None, 3])
def test_test_images_of_one_data_set_are_not_trained_on_in_another(tmp_path, kfold):
    """Images 3 and 4 are test images in one data set and training images in the other."""
    old = put_challenge(tmp_path / "old", train=range(20, 40), val=[1], test=[3, 4, 5])
    new = put_challenge(tmp_path / "new", train=[3, 4, *range(60, 80)], val=[2], test=[9])
    plain = put(tmp_path / "plain", "ISIC_0000005", *(f"p{i}" for i in range(20)))
    index = DatasetIndex.read((old, new, plain))
    parts = parts_of(index, official=True, kfold=kfold)
    held_out = {name for name, part in parts.items() if part == "test"}
    for number in (3, 4):
        assert {f"old-ISIC_{number:07}", f"new-ISIC_{number:07}"} <= held_out
    assert {"old-ISIC_0000005", "plain-ISIC_0000005", "ISIC_0000009"} <= held_out
    homes = {}
    for r in index.records:
        homes.setdefault(r.group, set()).add(parts[r.name])
    if kfold is None:
        assert parts["ISIC_0000001"] == parts["ISIC_0000002"] == "val"
    assert all(len(found) == 1 for found in homes.values())


def test_every_part_has_its_share_of_each_data_set(tmp_path):
    large = put(tmp_path / "large", *(f"l{i:03}" for i in range(200)))
    small = put(tmp_path / "small", *(f"s{i:03}" for i in range(20)))
    index = DatasetIndex.read((large, small))
    parts = parts_of(index)
    for home, wanted in (("large", [140, 30, 30]), ("small", [14, 3, 3])):
        mine = [parts[r.name] for r in index.records if r.source == home]
        assert [mine.count(part) for part in SHARES] == pytest.approx(wanted, abs=1)


# --- and on disk ---------------------------------------------------------------------------------


def test_a_cache_of_several_data_sets(tmp_path):
    for name in ("one", "two"):
        for i in range(3):
            write_pair(tmp_path / name, f"im{i}", seed=10 * len(name) + ord(name[0]) + i)
    roots = (tmp_path / "one", tmp_path / "two")
    cache = build_cache(DatasetIndex.read(roots), 16, tmp_path / "cache")
    for root in roots:
        alone = build_cache(DatasetIndex.read(root), 16, tmp_path / "cache")
        for i, name in enumerate(alone.names):
            at = cache.names.index(f"{root.name}-{name}")
            assert np.array_equal(cache.images[at], alone.images[i])
            assert np.array_equal(cache.masks[at], alone.masks[i])
    other_way = build_cache(DatasetIndex.read(roots[::-1]), 16, tmp_path / "cache")
    assert other_way.path == cache.path


def test_real_data_sets_together(real_data):
    names = ("isic2018", "ph2", "ham10000")
    index = DatasetIndex.read(tuple(real_data / name for name in names))
    alone = {name: DatasetIndex.read(real_data / name) for name in names}
    assert len(index.records) == sum(len(each.records) for each in alone.values())
    assert index.layout == "ham10000 + isic2018 + ph2"
    assert {r.dataset for r in index.records} == set(names)
    # No lesion of HAM10000 came apart on the way, and none is where another is.
    lesions = {r.image.name: r.group for r in alone["ham10000"].records}
    mine = [r for r in index.records if r.source == "ham10000"]
    together = {(lesions[r.image.name], r.group) for r in mine}
    assert len(together) == len({r.group for r in mine}) == len(set(lesions.values()))
