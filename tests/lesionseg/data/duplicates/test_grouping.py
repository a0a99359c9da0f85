"""Merging and exclusion of the groups of near-duplicates."""

from lesionseg.data.duplicates.audit import PairAudit
from lesionseg.data.duplicates.grouping import (
    apply_groups,
    find_crossing_groups,
    find_records_to_exclude,
    merge_groups,
)
from lesionseg.data.duplicates.leakage import DuplicateCluster
from lesionseg.data.pairs import Record


def records(*fields):
    """Build records from name, group and split."""
    return [Record(name, None, None, group, split) for name, group, split in fields]


def clusters_of(rows, *sets):
    return [
        DuplicateCluster(tuple(PairAudit(r) for r in rows if r.name in names), 0.9, exact=False)
        for names in sets
    ]


def test_near_duplicates_merge_their_groups_transitively():
    rows = records(*((n, g, None) for n, g in zip("abcdefg", "wwxxyzz", strict=True)))
    # b-c links w and x, d-e links x and y; z stays.
    groups = merge_groups(rows, clusters_of(rows, "bc", "de"), official=False)
    assert groups == {"c": "w", "d": "w", "e": "w"}
    assert [r.group for r in apply_groups(rows, groups)] == ["w", "w", "w", "w", "w", "z", "z"]
    assert merge_groups(rows, [], official=False) == {}
    assert apply_groups(rows, {}) == tuple(rows)
    assert merge_groups(rows, clusters_of(rows, "de", "bc"), official=False) == groups


def test_official_splits_are_not_merged():
    rows = records(("a", "a", "train"), ("b", "b", "train"), ("c", "c", "test"), ("d", "d", None))
    clusters = clusters_of(rows, "abcd")
    assert merge_groups(rows, clusters, official=True) == {"b": "a", "d": "c"}
    assert merge_groups(rows, clusters, official=False) == {"b": "a", "c": "a", "d": "a"}


def test_the_most_held_out_records_are_kept():
    rows = records(
        ("a", "a", "train"), ("b", "b", "val"), ("c", "c", "test"), ("d", "d", "test"),
        ("e", "e", "train"), ("f", "f", "val"), ("g", "g", "train"), ("h", "h", "train"),
    )  # fmt: skip
    crossing = find_crossing_groups(rows, clusters_of(rows, "abcd", "ef", "gh"))
    assert [groups.splits for groups in crossing] == [["train", "val", "test"], ["train", "val"]]
    assert find_records_to_exclude(crossing) == {"a", "b", "e"}


def test_a_single_group_in_two_splits_is_not_reported():
    rows = records(("a", "p", "train"), ("b", "p", "test"), ("c", "c", "train"), ("d", "d", "test"))
    crossing = find_crossing_groups(rows, clusters_of(rows, "ab", "cd"))
    assert [[r.name for r in groups.records] for groups in crossing] == [["c", "d"]]
    assert str(crossing[0]) == "c (train), d (test): similarity 0.90"


def test_the_whole_group_of_a_copy_is_excluded():
    rows = records(
        ("copy", "c", "test"), ("p", "lesion", "train"), ("mate", "lesion", "train"),
        ("other", "o", "train"),
    )  # fmt: skip
    clusters = clusters_of(rows, ("copy", "p"))
    assert find_records_to_exclude(find_crossing_groups(rows, clusters)) == {"p", "mate"}
    used = [r for r in rows if r.name in {"copy", "other"}]
    assert merge_groups(used, clusters, official=True) == {}


def test_a_group_without_split_may_link_two_splits():
    """a is a copy of b, c of d; b and d show one lesion."""
    rows = records(
        ("a", "a", "train"), ("c", "c", "test"), ("b", "bridge", None), ("d", "bridge", None)
    )
    clusters = clusters_of(rows, "ab", "cd")
    (groups,) = find_crossing_groups(rows, clusters)
    assert sorted(r.name for r in groups.records) == ["a", "b", "c", "d"]
    assert str(groups) == (
        "a (train), b: similarity 0.90 and, through their groups, c (test), d: similarity 0.90"
    )
    assert find_records_to_exclude([groups]) == {"a"}
    # With leaks allowed the linking group joins the test group.
    assert merge_groups(rows, clusters, official=True) == {"b": "c", "d": "c"}
    assert merge_groups(rows, clusters[::-1], official=True) == {"b": "c", "d": "c"}


def test_a_ring_of_near_duplicates_is_one_set_of_groups():
    rows = records(*((n, n, "train") for n in "abc"), ("d", "d", "test"))
    (groups,) = find_crossing_groups(rows, clusters_of(rows, "ab", "bc", "ca", "cd"))
    assert len(groups.records) == 4 and len(groups.clusters) == 4
    assert find_records_to_exclude([groups]) == {"a", "b", "c"}


def test_without_near_duplicates_no_groups_cross():
    assert find_crossing_groups(records(("a", "a", "train"), ("b", "b", "test")), []) == []
    assert find_crossing_groups([], []) == []
