"""Splits: nobody in two parts, shares kept, areas alike, official parts respected."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record
from lesionseg.data.split import Fold, Split, find_positions, has_official_split, make_split
from lesionseg.errors import InputError

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
PARTS = ("train", "val", "test")


def records_of(groups, splits=None):
    """Return records r000, r001, ... with the given groups and official splits."""
    return [
        Record(f"r{i:03}", Path(f"{i}.jpg"), Path(f"{i}.png"), g, splits[i] if splits else None)
        for i, g in enumerate(groups)
    ]


def single(n, splits=None):
    return records_of([f"g{i}" for i in range(n)], splits)


def areas_of(n, seed=0):
    return np.random.default_rng(seed).beta(2, 5, n)


def sizes(split):
    return {part: len(getattr(split, part)) for part in PARTS}


group_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=60)
shares_strategy = st.sampled_from(
    [SHARES, {"train": 0.34, "val": 0.33, "test": 0.33}, {"train": 0.9, "val": 0.05, "test": 0.05}]
)


@given(group_sizes, shares_strategy, st.integers(0, 2**31), st.booleans())
@settings(max_examples=150, deadline=None)
def test_parts_partition_the_groups_by_the_shares(group_sizes, shares, seed, alike):
    groups = [f"g{i}" for i, size in enumerate(group_sizes) for _ in range(size)]
    n = len(groups)
    records = records_of(groups)
    areas = np.full(n, 0.3) if alike else areas_of(n, seed % 1000)
    try:
        split = make_split(records, areas, shares, seed=seed)
    except InputError as error:
        assert "too few" in str(error)
        return
    parted = [name for part in PARTS for name in getattr(split, part)]
    assert sorted(parted) == [r.name for r in records]
    home = {name: part for part in PARTS for name in getattr(split, part)}
    for group in set(groups):
        assert len({home[r.name] for r in records if r.group == group}) == 1
    for part in PARTS:
        assert list(getattr(split, part)) == sorted(getattr(split, part))
        # A group goes to the part that lacks most, which lacks a third of it or more: no part
        # ever has 2/3 of a group too much, so that none lacks more than twice that.
        assert abs(sizes(split)[part] - shares[part] * n) <= 4 / 3 * max(group_sizes) + 1e-9


def test_the_seed_determines_the_split():
    def split(seed):
        return make_split(single(100), areas_of(100), SHARES, seed=seed)

    assert split(3) == split(3)
    assert len({split(seed).test for seed in range(20)}) == 20


def test_every_image_can_be_assigned_to_test():
    """The area alone does not determine the part."""
    tested = Counter()
    for seed in range(200):
        tested.update(make_split(single(40), areas_of(40), SHARES, seed=seed).test)
    assert len(tested) == 40
    assert max(tested.values()) < 4 * 200 * 0.15


ELSEWHERE = """
import json, sys
import numpy as np
from pathlib import Path
from lesionseg.data.pairs import Record
from lesionseg.data.split import make_split

groups, areas, shares = json.loads(sys.argv[1])
records = [Record(f"r{i:03}", Path(f"{i}.jpg"), Path(f"{i}.png"), g) for i, g in enumerate(groups)]
print(json.dumps(make_split(records, np.array(areas), shares, seed=7).to_dict()))
"""


def test_the_split_does_not_depend_on_hash_seeds():
    """Workers on other machines compute the split again."""
    groups, areas = [f"p{i % 23}" for i in range(60)], areas_of(60)
    here = make_split(records_of(groups), areas, SHARES, seed=7)
    given = json.dumps([groups, areas.tolist(), SHARES])
    for hashes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, given],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": hashes},
        )
        assert Split.from_dict(json.loads(done.stdout)) == here


@pytest.fixture(scope="module")
def isic(real_data):
    """Return records of real ISIC masks and their lesion areas."""
    records = DatasetIndex.read(real_data / "isic2018").records
    areas = [float((np.asarray(Image.open(r.mask)) > 0).mean()) for r in records]
    return records, np.array(areas)


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_real_lesions_have_similar_areas(isic, seed):
    records, areas = isic
    split = make_split(records, areas, SHARES, seed=seed)
    assert sizes(split) == pytest.approx({p: s * 2057 for p, s in SHARES.items()}, abs=1)
    order = [r.name for r in records]
    parts = {part: areas[find_positions(getattr(split, part), order)] for part in PARTS}
    for part in PARTS:
        # At random, 309 of 2057 pictures would be about 0.05 away from all of them.
        assert ks_2samp(parts[part], areas).statistic < 0.02
    limited = make_split(records, areas, SHARES, seed=seed, limits={"train": 200, "val": 50})
    assert sizes(limited) == {"train": 200, "val": 50, "test": sizes(split)["test"]}
    for part in ("train", "val"):
        assert set(getattr(limited, part)) < set(getattr(split, part))
        thin = areas[find_positions(getattr(limited, part), order)]
        assert ks_2samp(thin, areas).statistic < 0.04


def test_parts_of_uneven_groups_have_similar_areas():
    rng = np.random.default_rng(0)
    group_of = rng.integers(0, 150, 600)
    areas = np.clip(0.2 + 0.1 * (group_of % 7) / 7 + rng.normal(0, 0.01, 600), 0, 1)
    records = records_of([f"p{g}" for g in group_of])
    split = make_split(records, areas, SHARES)
    order = [r.name for r in records]
    for part in PARTS:
        assert ks_2samp(areas[find_positions(getattr(split, part), order)], areas).statistic < 0.12


# --- official parts ------------------------------------------------------------------------------


def test_official_parts_are_used():
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 1
    split = make_split(single(10, splits), areas_of(10), SHARES, official=True, seed=5)
    assert sizes(split) == {"train": 6, "val": 3, "test": 1}
    assert split.test == ("r009",) and split.val == ("r006", "r007", "r008")


def test_a_missing_val_is_taken_from_train():
    splits = ["train"] * 80 + ["test"] * 20
    records = single(100, splits)
    split = make_split(records, areas_of(100), SHARES, official=True)
    assert set(split.test) == {r.name for r in records[80:]}
    assert set(split.train) | set(split.val) == {r.name for r in records[:80]}
    assert sizes(split) == {"train": 68, "val": 12, "test": 20}  # 15% of 80
    other = make_split(records, areas_of(100), SHARES, official=True, seed=1)
    assert other.test == split.test and other.val != split.val


def test_a_val_taken_from_train_keeps_groups():
    groups = [f"p{i // 4}" for i in range(80)] + [f"t{i}" for i in range(10)]
    records = records_of(groups, ["train"] * 80 + ["test"] * 10)
    split = make_split(records, areas_of(90), SHARES, official=True)
    group_of = {r.name: r.group for r in records}
    homes = [{group_of[n] for n in getattr(split, part)} for part in PARTS]
    assert not homes[0] & homes[1] and not homes[0] & homes[2] and not homes[1] & homes[2]


def of_set(name, records):
    return [
        replace(r, name=f"{name}{r.name}", group=f"{name}{r.group}", dataset=name) for r in records
    ]


def test_a_data_set_without_parts_beside_one_with_parts():
    """All records of both are used."""
    known = of_set("a", single(40, ["train"] * 28 + ["val"] * 6 + ["test"] * 6))
    records = known + of_set("b", single(40))
    split = make_split(records, areas_of(80), SHARES, official=True)
    counts = {part: Counter(name[0] for name in getattr(split, part)) for part in PARTS}
    assert [counts[part]["a"] for part in PARTS] == [28, 6, 6]
    assert [counts[part]["b"] for part in PARTS] == [28, 6, 6]
    split = make_split(records, areas_of(80), SHARES, official=True, kfold=4)
    assert Counter(name[0] for name in (*split.train, *split.val)) == {"a": 34, "b": 34}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", None, "val", "test"] * 10, (20, 10, 10)),
        ([None, None, None, "test"] * 10, (24, 6, 10)),
    ],
)
def test_records_without_a_part_belong_to_train(splits, expected):
    records = single(40, splits)
    split = make_split(records, areas_of(40), {**SHARES, "val": 0.2}, official=True)
    assert tuple(sizes(split).values()) == expected
    assert set(split.test) == {r.name for r in records if r.split == "test"}


@pytest.mark.parametrize("seed", range(5))
def test_large_groups_do_not_affect_another_data_set(seed):
    """Ten patients of 30 images each, beside 100 single images."""
    large = of_set("a", records_of([f"p{i // 30}" for i in range(300)]))
    records = large + of_set("b", single(100))
    split = make_split(records, areas_of(400), SHARES, seed=seed)
    counts = {part: Counter(name[0] for name in getattr(split, part)) for part in PARTS}
    assert counts["val"]["b"] >= 8 and counts["test"]["b"] >= 8
    split = make_split(records, areas_of(400), {"test": 0.15}, seed=seed, kfold=5)
    assert all(Counter(n[0] for n in fold.val)["b"] >= 8 for fold in split.folds)


def test_official_parts_are_ignored_by_default():
    splits = ["train"] * 80 + ["test"] * 20
    with_, without = (
        make_split(single(100, s), areas_of(100), SHARES, seed=2) for s in (splits, None)
    )
    assert with_ == without


def test_has_official_split():
    assert not has_official_split(single(3))
    assert not has_official_split(single(3, ["train", "val", None]))
    assert has_official_split(single(3, ["train", None, "test"]))


def test_missing_official_parts_are_refused():
    with pytest.raises(InputError) as caught:
        make_split(single(10, ["train"] * 10), areas_of(10), SHARES, official=True)
    assert str(caught.value) == "data.split: official: the data set's folders name no test images"


# --- limits and too few --------------------------------------------------------------------------


def test_a_limit_affects_only_its_part():
    free = make_split(single(100), areas_of(100), SHARES)
    cut = make_split(
        single(100), areas_of(100), SHARES, limits={"train": 10, "val": None, "test": 1000}
    )
    assert sizes(cut) == {"train": 10, "val": 15, "test": 15}
    assert set(cut.train) < set(free.train)
    assert cut.val == free.val and cut.test == free.test


@given(st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_limit_is_met_exactly(limit, seed):
    areas = np.round(areas_of(100, seed), 1)  # many alike
    split = make_split(single(100), areas, SHARES, limits={"train": limit})
    assert len(set(split.train)) == len(split.train) == limit


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_too_few_images_are_refused(n):
    with pytest.raises(InputError) as caught:
        make_split(single(n), areas_of(n), SHARES)
    text = str(caught.value)
    assert text.startswith(f"data.split: {n} images are too few: ")
    assert " would be empty (train " in text and "\n" not in text


def test_all_empty_parts_are_named():
    with pytest.raises(InputError) as caught:
        make_split(single(1), areas_of(1), SHARES)
    assert str(caught.value) == (
        "data.split: 1 images are too few: val and test would be empty "
        "(train 1, val 0, test 0); add images or change data.split"
    )


def test_five_images_are_enough():
    assert sizes(make_split(single(5), areas_of(5), SHARES)) == {"train": 3, "val": 1, "test": 1}


def test_one_group_cannot_be_split():
    counts = r"val and test would be empty \(in 1 undivided groups, train 50"
    with pytest.raises(InputError, match=counts):
        make_split(records_of(["p"] * 50), areas_of(50), SHARES)


# --- plain data ----------------------------------------------------------------------------------


def test_round_trip_of_a_split():
    split = make_split(single(20), areas_of(20), SHARES)
    plain = split.to_dict()
    assert list(plain) == list(PARTS)
    assert Split.from_dict(json.loads(json.dumps(plain))) == split


def test_find_positions():
    found = find_positions(["c", "a"], ["a", "b", "c"])
    assert found.tolist() == [2, 0] and found.dtype == np.int64
    assert find_positions([], ["a"]).shape == (0,)
    with pytest.raises(KeyError):
        find_positions(["d"], ["a"])


# --- folds ---------------------------------------------------------------------------------------


def names_of(records):
    return [r.name for r in records]


@given(group_sizes, st.integers(2, 7), st.integers(0, 2**31), st.sampled_from([0.1, 0.3]))
@settings(max_examples=150, deadline=None)
def test_each_record_is_in_one_validation_fold(group_sizes, kfold, seed, test):
    groups = [f"g{i}" for i, size in enumerate(group_sizes) for _ in range(size)]
    records, areas = records_of(groups), areas_of(len(groups), seed % 1000)
    try:
        split = make_split(records, areas, {"test": test}, seed=seed, kfold=kfold)
    except InputError as error:
        assert "too few" in str(error) or "must be at most the number of groups" in str(error)
        return
    assert len(split.folds) == kfold
    assert (split.folds[0].train, split.folds[0].val) == (split.train, split.val)
    pool = sorted({*names_of(records)} - {*split.test})
    assert sorted(name for fold in split.folds for name in fold.val) == pool
    group = {r.name: r.group for r in records}
    for fold in split.folds:
        assert fold.val
        assert sorted(fold.train + fold.val) == pool
        parts = [{group[name] for name in part} for part in (fold.train, fold.val, split.test)]
        assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & parts[2]
        assert abs(len(fold.val) - len(pool) / kfold) <= 4 / 3 * max(group_sizes) + 1e-9


@pytest.mark.parametrize(("n", "kfold"), [(20, 2), (100, 5), (1000, 10)])
def test_folds_of_single_images_have_equal_sizes(n, kfold):
    split = make_split(single(n), areas_of(n), {"test": 0.2}, kfold=kfold)
    assert len(split.test) == 0.2 * n
    assert {len(fold.val) for fold in split.folds} <= {
        int(0.8 * n / kfold),
        -(-8 * n // (10 * kfold)),
    }


@pytest.mark.parametrize("seed", range(5))
def test_folds_have_similar_lesion_areas(seed):
    n, kfold = 1000, 5
    records, areas = single(n), areas_of(n, seed)
    split = make_split(records, areas, {"test": 0.15}, seed=seed, kfold=kfold)
    area = dict(zip(names_of(records), areas, strict=True))
    for fold in split.folds:
        found = ks_2samp([area[name] for name in fold.val], areas)
        assert found.statistic < 0.05  # of draws that were not sorted the median is near 0.07


def test_the_number_of_folds_is_limited_by_the_groups():
    records = records_of(["a", "a", "b", "c", "d", "t"], [*["train"] * 3, "val", "train", "test"])
    areas = areas_of(6)
    split = make_split(records, areas, {"test": 0.15}, official=True, kfold=4)
    assert sorted(fold.val for fold in split.folds) == [
        ("r000", "r001"),
        *(("r002",), ("r003",), ("r004",)),
    ]
    assert split.test == ("r005",)
    with pytest.raises(InputError) as caught:
        make_split(records, areas, {"test": 0.15}, official=True, kfold=5)
    assert str(caught.value) == (
        "data.split.kfold: must be at most the number of groups that are not for testing (4), got 5"
    )


def test_folds_keep_the_official_test_part():
    splits = [*["train"] * 20, *["val"] * 5, *["test"] * 7]
    records, areas = single(32, splits), areas_of(32)
    split = make_split(records, areas, {"test": 0.5}, official=True, kfold=5)
    assert split.test == tuple(names_of(records)[25:])
    assert [len(fold.val) for fold in split.folds] == [5] * 5


def test_few_groups_of_many_data_sets_fill_every_fold():
    """Each data set has fewer groups than folds."""
    records = [
        Record(f"r{i}", Path(f"{i}.jpg"), Path(f"{i}.png"), f"g{i}", None, f"set {i // 3}")
        for i in range(30)
    ]
    split = make_split(records, areas_of(30), {"test": 0.2}, kfold=6)
    assert sorted(len(fold.val) for fold in split.folds) == [4] * 6


def test_limits_apply_to_each_fold():
    n, limits = 100, {"train": 30, "val": 7, "test": 5}
    records = single(n)
    split = make_split(records, areas_of(n), {"test": 0.2}, kfold=4, limits=limits)
    assert len(split.test) == 5
    assert [(len(fold.train), len(fold.val)) for fold in split.folds] == [(30, 7)] * 4
    assert not any({*fold.train} & {*fold.val} for fold in split.folds)
    assert Split.from_dict(json.loads(json.dumps(split.to_dict()))) == split


def test_round_trip_of_folds():
    split = make_split(single(40), areas_of(40), {"test": 0.2}, kfold=4)
    plain = json.loads(json.dumps(split.to_dict()))
    assert list(plain) == ["train", "val", "test", "folds"]
    assert [tuple(names) for names in plain["folds"]] == [fold.val for fold in split.folds]
    assert Split.from_dict(plain) == split
    assert Split.from_dict({"train": ["a"], "val": ["b"], "test": ["c"]}).folds == ()
    two = Split(("a",), ("b",), ("c",), (Fold(("a",), ("b",)), Fold(("b",), ("a",))))
    assert Split.from_dict(two.to_dict()) == two


def test_to_dict_without_folds():
    split = make_split(single(40), areas_of(40), SHARES)
    assert list(split.to_dict()) == ["train", "val", "test"]


@pytest.mark.parametrize("kfold", [None, 5])
def test_the_lesions_of_the_real_ham10000_never_cross_a_split(real_data, kfold):
    index = DatasetIndex.read(real_data / "ham10000")
    group = {r.name: r.group for r in index.records}
    for seed in range(20):
        areas = areas_of(len(index.records), seed)
        split = make_split(index.records, areas, SHARES, seed=seed, kfold=kfold)
        for train, val in [(f.train, f.val) for f in split.folds] or [(split.train, split.val)]:
            parts = [{group[name] for name in part} for part in (train, val, split.test)]
            assert sum(map(len, parts)) == len(set.union(*parts)) == 115
