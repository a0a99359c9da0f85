"""What a study does about pictures that its parts would share."""

import json
from pathlib import Path

import numpy as np
import pytest

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.split import make_split
from lesionseg.errors import InputError
from search.results.report.report_facts import report_facts
from search.storage.trial_records import all_trials
from search.study import data_audit, lifecycle
from search.study.opening import load_study, open_study
from tests.conftest import write_folder
from tests.lesionseg.data.copies import CHANGES, recompressed, scaled, texture
from tests.lesionseg.data.duplicates.test_leakage import put
from tests.search.helpers import open_tiny


@pytest.fixture
def official(tmp_path):
    """16 pictures for training, 4 of val, 6 of test; a of train lies in test as well, smaller."""
    root = tmp_path / "data"
    for i in range(26):
        put(root, f"p{i:02}", texture(i), "train" if i < 16 else "val" if i < 20 else "test")
    put(root, "q", recompressed(scaled(texture(3), 0.5), 60), "test", "jpg")
    return root


@pytest.fixture
def alike(tmp_path):
    """30 pictures, of which six and six and two show the same."""
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


def refusal(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts_of(split, names):
    return {part for part in ("train", "val", "test") if set(getattr(split, part)) & set(names)}


def test_official_splits_that_share_a_picture_are_refused_in_one_line(official, tmp_path):
    told = refusal(open_tiny, official, tmp_path / "s")
    assert told.startswith("data: 1 picture lies in two official splits: p03 (train), q (test): al")
    assert told.endswith(
        "data.leaks=drop leaves out the copies that are less held out, with their groups, "
        "data.leaks=allow keeps them"
    )
    assert not (tmp_path / "s").exists()


def test_the_same_in_shares_is_one_group_and_nothing_is_refused(official, tmp_path):
    opened = open_tiny(official, tmp_path / "s", {"data.split": "shares"})
    assert len(parts_of(opened.split, ["p03", "q"])) == 1
    groups = {r.name: r.group for r in opened.index.records}
    assert groups["q"] == groups["p03"] == "p03"


def test_dropping_takes_the_copy_out_of_training_and_nothing_else(official, tmp_path):
    opened = open_tiny(official, tmp_path / "s", {"data.leaks": "drop"})
    names = {r.name: r.split for r in opened.index.records}
    for part in ("train", "val", "test"):
        kept = {n for n, split in names.items() if split == part} - {"p03"}
        assert set(getattr(opened.split, part)) == kept
    found = data_audit.read_audit(tmp_path / "s")
    assert found["left_out"] == ["p03"] and found["leaks"] == 1
    summed = data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict())
    assert (summed["copies"], summed["across"], summed["left_out"]) == (1, 0, 1)
    assert data_audit.describe_audit(summed) == (
        "1 pictures lie under several names, such as p03 = q; those that are used are one group "
        "each; 1 pictures of training or validation are left out for them"
    )


def test_allowing_keeps_the_parts_as_they_are_and_says_so(official, tmp_path):
    opened = open_tiny(official, tmp_path / "s", {"data.leaks": "allow"})
    assert parts_of(opened.split, ["p03"]) == {"train"}
    assert parts_of(opened.split, ["q"]) == {"test"}
    summed = data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict())
    assert (summed["across"], summed["names"]) == (1, [["p03", "q"]])
    assert "1 of them are in more than one part, as data.leaks allows" in data_audit.describe_audit(
        summed
    )


def test_folds_are_dealt_of_train_and_val_so_that_copies_in_both_are_one_group(tmp_path):
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
    assert data_audit.read_audit(tmp_path / "s")["excluded"] == []
    # A test picture among them is refused all the same.
    put(root, "t", recompressed(texture(1), 60), "test", "jpg")
    assert "in two official splits" in refusal(open_tiny, root, tmp_path / "t", options)


@pytest.mark.parametrize("seed", range(4))
def test_copies_never_come_into_two_parts(alike, tmp_path, seed):
    opened = open_tiny(alike, tmp_path / "s", {"data.split": {"seed": seed}})
    for first, others in (("p00", "x"), ("p01", "y"), ("p02", "z")):
        names = [r.name for r in opened.index.records if r.name[0] == others] + [first]
        assert len(parts_of(opened.split, names)) == 1
        assert len({r.group for r in opened.index.records if r.name in names}) == 1
    assert sum(len(getattr(opened.split, p)) for p in ("train", "val", "test")) == 30


def test_without_grouping_some_seed_would_have_parted_them(alike, tmp_path):
    """The test above can fail."""
    index = DatasetIndex.read(alike)
    areas = build_cache(index, 16, tmp_path / "cache").areas
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    names = [r.name for r in index.records if r.name[0] == "x"] + ["p00"]
    split = make_split(index.records, areas, shares)
    assert len(parts_of(split, names)) > 1


def test_data_without_copies_are_split_as_they_would_be_without_an_audit(tmp_path):
    data = write_folder(tmp_path / "data", 30)
    opened = open_tiny(data, tmp_path / "s")
    index = DatasetIndex.read(data)
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    assert opened.split == make_split(index.records, opened.cache.areas, shares)
    assert opened.index == index
    assert data_audit.read_audit(tmp_path / "s")["duplicates"] == []
    assert (
        data_audit.describe_audit(
            data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict())
        )
        is None
    )


def test_the_audit_is_kept_and_not_made_again(alike, tmp_path, monkeypatch):
    first = open_tiny(alike, tmp_path / "s")
    kept = (tmp_path / "s" / "audit.json").read_text()
    told = json.loads(kept)
    assert [len(c["images"]) for c in told["duplicates"]] in ([6, 6, 2], [6, 2, 6], [2, 6, 6])
    assert set(told["regrouped"].values()) == {"p00", "p01", "p02"}

    def never(*args, **kwargs):
        raise AssertionError("audited again")

    monkeypatch.setattr(lifecycle, "audit_study", never)
    for again in (open_tiny(alike, tmp_path / "s"), open_study(tmp_path / "s")):
        assert again.split == first.split
        assert again.index == first.index  # groups too
    assert (tmp_path / "s" / "audit.json").read_text() == kept


def test_a_study_of_older_times_has_no_audit_and_its_own_groups(alike, tmp_path):
    open_tiny(alike, tmp_path / "s")
    (tmp_path / "s" / "audit.json").unlink()
    opened = open_study(tmp_path / "s")
    opened.study.set_user_attr("groups", {})
    assert open_study(tmp_path / "s").index == DatasetIndex.read(alike)
    assert data_audit.summarize_audit(tmp_path / "s", opened.split.to_dict()) is None


def test_a_report_says_what_was_found(alike, tmp_path):
    opened = open_tiny(alike, tmp_path / "s")
    found, about = load_study(tmp_path / "s")
    facts = report_facts(tmp_path / "s", found, all_trials(opened.study), about)
    told = facts["data"]["audit"]
    assert (told["copies"], told["across"], told["left_out"]) == (3, 0, 0)
    assert sorted(map(len, told["names"])) == [2, 6, 6]


def test_the_json_of_a_check_that_cannot_be_written_is_one_line(alike):
    found = data_audit.audit_study(
        DatasetIndex.read(alike),
        build_cache(DatasetIndex.read(alike), 16),
        official=False,
        leaks="refuse",
    ).found
    assert refusal(data_audit.write_json, found, Path("none/a.json")).startswith(
        "--json: none/a.json"
    )
    assert np.isclose(min(c.similarity for c in found.clusters), 0.9, atol=0.25)
