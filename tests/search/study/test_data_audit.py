"""Near-duplicates among the images of a study."""

import json

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pair_io import read_true_mask
from lesionseg.data.split import make_split
from lesionseg.runtime.files import read_json
from search.results.report.report_facts import report_facts
from search.results.report.sections import Text, _data
from search.study import creation, data_audit
from search.study.opening import open_study
from tests.conftest import write_folder, write_pair
from tests.lesionseg.data.copies import CHANGES, recompressed, scaled, texture
from tests.lesionseg.data.duplicates.test_leakage import put
from tests.lesionseg.data.test_image_io import STORED, with_orientation
from tests.search.helpers import open_tiny, refusal


@pytest.fixture
def official(tmp_path):
    """16 images of train, 4 of val, 6 of test; one of train is in test too, smaller."""
    root = tmp_path / "data"
    for i in range(26):
        put(root, f"p{i:02}", texture(i), "train" if i < 16 else "val" if i < 20 else "test")
    put(root, "q", recompressed(scaled(texture(3), 0.5), 60), "test", "jpg")
    return root


@pytest.fixture
def duplicated(tmp_path):
    """30 images in which two lesions appear six times and one twice."""
    root = tmp_path / "data"
    for i in range(16):
        put(root, f"p{i:02}", texture(i))
    for k, change in enumerate(("JPEG 60", "rotate_90", "half the size", "darker", "grey")):
        put(root, f"x{k}", CHANGES[change](texture(0)))
        put(root, f"y{k}", CHANGES[change](texture(1)))
    put(root, "z", CHANGES["cropped by 2%"](texture(2)))
    for i in range(16, 19):
        put(root, f"p{i:02}", texture(i))
    return root


def parts_of(split, names):
    return {part for part in ("train", "val", "test") if set(getattr(split, part)) & set(names)}


def test_leaks_between_official_splits_are_an_error(official, tmp_path):
    message = refusal(open_tiny, official, tmp_path / "s")
    assert message.startswith("data: 1 image is in two official splits: p03")
    assert message.endswith(
        "data.leaks=drop leaves the copies in train or val out, with their groups; "
        "data.leaks=allow keeps them"
    )
    assert not (tmp_path / "s").exists()


def test_without_official_splits_copies_are_one_group(official, tmp_path):
    opened = open_tiny(official, tmp_path / "s", {"data.split": "shares"})
    assert len(parts_of(opened.split, ["p03", "q"])) == 1
    groups = {r.name: r.group for r in opened.index.records}
    assert groups["q"] == groups["p03"] == "p03"


def test_drop_excludes_the_copy_in_train_only(official, tmp_path):
    opened = open_tiny(official, tmp_path / "s", {"data.leaks": "drop"})
    names = {r.name: r.split for r in opened.index.records}
    for part in ("train", "val", "test"):
        kept = {n for n, split in names.items() if split == part} - {"p03"}
        assert set(getattr(opened.split, part)) == kept
    audit = read_json(tmp_path / "s" / "audit.json")
    assert audit["excluded"] == ["p03"] and audit["leaks"] == 1
    summary = data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict())
    assert (summary["duplicates"], summary["leaks"], summary["excluded"]) == (1, 0, 1)
    assert data_audit.describe_audit(summary) == (
        "1 images have several names, such as p03 = q; the copies in use are in one group each; "
        "1 images of train or val are left out"
    )


def test_allow_keeps_the_official_splits(official, tmp_path):
    opened = open_tiny(official, tmp_path / "s", {"data.leaks": "allow"})
    assert parts_of(opened.split, ["p03"]) == {"train"}
    assert parts_of(opened.split, ["q"]) == {"test"}
    summary = data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict())
    assert (summary["leaks"], summary["names"]) == (1, [["p03", "q"]])
    line = data_audit.describe_audit(summary)
    assert "1 of them are in more than one part, as data.leaks allows" in line


def test_copies_are_in_one_fold(tmp_path):
    root = tmp_path / "data"
    for i in range(20):
        put(root, f"p{i:02}", texture(i), "train" if i < 12 else "val" if i < 16 else "test")
    for i in range(4):
        put(root, f"c{i}", recompressed(texture(i), 60), "val", "jpg")
    options = {"data.split": {"kfold": 3}}
    opened = open_tiny(root, tmp_path / "s", options)
    for fold in opened.split.folds:
        for i in range(4):
            assert len({f"p{i:02}", f"c{i}"} & set(fold.val)) in {0, 2}
    assert sum(len(fold.val) for fold in opened.split.folds) == 20
    assert read_json(tmp_path / "s" / "audit.json")["excluded"] == []
    # A copy in test is still an error.
    put(root, "t", recompressed(texture(1), 60), "test", "jpg")
    assert "in two official splits" in refusal(open_tiny, root, tmp_path / "t", options)


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_in_one_part(duplicated, tmp_path, seed):
    opened = open_tiny(duplicated, tmp_path / "s", {"data.split": {"seed": seed}})
    for first, others in (("p00", "x"), ("p01", "y"), ("p02", "z")):
        names = [r.name for r in opened.index.records if r.name[0] == others] + [first]
        assert len(parts_of(opened.split, names)) == 1
        assert len({r.group for r in opened.index.records if r.name in names}) == 1
    assert sum(len(getattr(opened.split, p)) for p in ("train", "val", "test")) == 30


def test_without_groups_copies_are_in_two_parts(duplicated, tmp_path):
    """The previous test can fail."""
    index = DatasetIndex.read(duplicated)
    areas = build_cache(index, 16, tmp_path / "cache").areas
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    names = [r.name for r in index.records if r.name[0] == "x"] + ["p00"]
    split = make_split(index.records, areas, shares)
    assert len(parts_of(split, names)) > 1


def test_the_audit_does_not_change_a_split_without_copies(tmp_path):
    data = write_folder(tmp_path / "data", 30)
    opened = open_tiny(data, tmp_path / "s")
    index = DatasetIndex.read(data)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    assert opened.split == make_split(index.records, opened.cache.areas, shares)
    assert opened.index == index
    audit = data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict())
    assert (audit["duplicates"], data_audit.describe_audit(audit)) == (0, None)


def test_the_audit_is_stored_and_not_repeated(duplicated, tmp_path, monkeypatch):
    first = open_tiny(duplicated, tmp_path / "s")
    text = (tmp_path / "s" / "audit.json").read_text()
    audit = json.loads(text)
    assert sorted(len(c["images"]) for c in audit["duplicates"]) == [2, 6, 6]
    assert set(audit["groups"].values()) == {"p00", "p01", "p02"}

    monkeypatch.setattr(creation, "audit_study", None)
    for again in (open_tiny(duplicated, tmp_path / "s"), open_study(tmp_path / "s")):
        assert again.split == first.split
        assert again.index == first.index  # groups too
    assert (tmp_path / "s" / "audit.json").read_text() == text


def test_a_study_without_an_audit(duplicated, tmp_path):
    open_tiny(duplicated, tmp_path / "s")
    (tmp_path / "s" / "audit.json").unlink()
    opened = open_study(tmp_path / "s")
    opened.study.set_user_attr("groups", {})
    assert open_study(tmp_path / "s").index == DatasetIndex.read(duplicated)
    assert data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict()) is None


def test_the_report_contains_the_audit(duplicated, tmp_path):
    open_tiny(duplicated, tmp_path / "s")
    audit = report_facts(tmp_path / "s")["data"]["audit"]
    assert (audit["duplicates"], audit["leaks"], audit["excluded"]) == (3, 0, 0)
    assert sorted(map(len, audit["names"])) == [2, 6, 6]


def test_masks_that_are_all_full_are_refused(tmp_path):
    root = write_folder(tmp_path / "data", 6)
    for path in (root / "masks").iterdir():
        Image.new("RGBA", (48, 40), "white").save(path)
    message = refusal(open_tiny, root, tmp_path / "s")
    assert message.startswith(
        "data: none of 6 masks shows both lesion and skin: 6 are all lesion, 0 all skin, such as "
    )
    assert not (tmp_path / "s").exists()


def test_inverted_masks_are_warned_of_and_inverted(tmp_path):
    root = write_folder(tmp_path / "data", 12)
    truths = {}
    for path in (root / "masks").iterdir():
        truths[path.stem] = np.asarray(Image.open(path)) > 0
        Image.fromarray(~truths[path.stem]).save(path)
    open_tiny(root, tmp_path / "plain")
    facts = report_facts(tmp_path / "plain")
    (warning,) = facts["data"]["summary"]["warnings"]
    assert warning.startswith("the masks seem to be inverted: in 12 of 12 images")
    blocks = _data(facts["data"], facts["fidelity"])
    (found,) = [b for b in blocks if isinstance(b, Text) and b.kind == "warning"]
    assert found.text == f"Warning: {warning}."
    changes = {"data.invert_masks": True}
    assert "data.invert_masks differ" in refusal(open_tiny, root, tmp_path / "plain", changes)
    for opened in (open_tiny(root, tmp_path / "s", changes), open_study(tmp_path / "s")):
        assert report_facts(tmp_path / "s")["data"]["summary"]["warnings"] == []
        for record in opened.index.records:
            assert np.array_equal(read_true_mask(record), truths[record.name])
        areas = [truths[name].mean() for name in opened.cache.names]
        assert opened.cache.areas == pytest.approx(areas)


def test_masks_made_on_images_as_stored_are_turned_in_a_study(tmp_path):
    root, truths = tmp_path / "data", {}
    for i in range(12):  # every third image is square, where both ways fit
        name = f"p{i:02}"
        write_pair(root, name, size=(60, 40) if i % 3 else (48, 48), seed=i)
        truths[name] = np.asarray(Image.open(root / "masks" / f"{name}.png")) > 0
        for folder, orientation in (("images", 6), ("masks", 1)):
            path = root / folder / f"{name}.png"
            with_orientation(path, STORED[6](np.asarray(Image.open(path))), orientation)
    for opened in (open_tiny(root, tmp_path / "s"), open_study(tmp_path / "s")):
        for record in opened.index.records:
            assert np.array_equal(read_true_mask(record), truths[record.name])
        dark = opened.cache.images.mean(axis=3) < 130
        assert (dark == opened.cache.masks).mean() > 0.95
    notes = report_facts(tmp_path / "s")["data"]["summary"]["notes"]
    assert [note.split(" masks")[0] for note in notes] == ["8", "4"]
