"""What is done about copies before pictures are split."""

from lesionseg.data.duplicates.grouping import (
    apply_groups,
    find_crossing_groups,
    find_records_to_exclude,
    merge_groups,
)
from lesionseg.data.duplicates.leakage import DuplicateCluster, Member
from lesionseg.data.index import Record


def records(*rows):
    """name, group, split."""
    return [Record(name, None, None, group, split) for name, group, split in rows]


def copies_of(known, *sets):
    return [
        DuplicateCluster(
            tuple(Member("", r, None) for r in known if r.name in names), 0.9, exact=False
        )
        for names in sets
    ]


def test_copies_are_put_into_one_group_through_the_groups_that_they_link():
    known = records(*((n, g, None) for n, g in zip("abcdefg", "wwxxyzz", strict=True)))
    # b-c links w and x, d-e links x and y; z stays.
    groups = merge_groups(known, copies_of(known, "bc", "de"), official=False)
    assert groups == {"c": "w", "d": "w", "e": "w"}
    assert [r.group for r in apply_groups(known, groups)] == ["w", "w", "w", "w", "w", "z", "z"]
    assert merge_groups(known, [], official=False) == {}
    assert apply_groups(known, {}) == tuple(known)
    # In another order of the pairs, the same.
    assert merge_groups(known, copies_of(known, "de", "bc"), official=False) == groups


def test_official_splits_keep_copies_apart_that_lie_in_both():
    known = records(("a", "a", "train"), ("b", "b", "train"), ("c", "c", "test"), ("d", "d", None))
    copies = copies_of(known, "abcd")
    assert merge_groups(known, copies, official=True) == {"b": "a", "d": "c"}
    assert merge_groups(known, copies, official=False) == {"b": "a", "c": "a", "d": "a"}


def test_what_is_held_out_most_is_kept():
    known = records(
        ("a", "a", "train"), ("b", "b", "val"), ("c", "c", "test"), ("d", "d", "test"),
        ("e", "e", "train"), ("f", "f", "val"), ("g", "g", "train"), ("h", "h", "train"),
    )  # fmt: skip
    crossed = find_crossing_groups(known, copies_of(known, "abcd", "ef", "gh"))
    assert [lot.splits for lot in crossed] == [["train", "val", "test"], ["train", "val"]]
    assert find_records_to_exclude(crossed) == {"a", "b", "e"}


def test_copies_of_one_group_are_known_and_do_not_cross():
    known = records(
        ("a", "p", "train"), ("b", "p", "test"), ("c", "c", "train"), ("d", "d", "test")
    )
    crossed = find_crossing_groups(known, copies_of(known, "ab", "cd"))
    assert [[r.name for r in lot.records] for lot in crossed] == [["c", "d"]]
    assert str(crossed[0]) == "c (train), d (test): similarity 0.90"


def test_who_shares_a_group_with_a_copy_is_left_out_with_it():
    known = records(
        ("copy", "c", "test"), ("p", "lesion", "train"), ("mate", "lesion", "train"),
        ("other", "o", "train"),
    )  # fmt: skip
    copies = copies_of(known, ("copy", "p"))
    assert find_records_to_exclude(find_crossing_groups(known, copies)) == {"p", "mate"}
    used = [r for r in known if r.name in {"copy", "other"}]
    assert merge_groups(used, copies, official=True) == {}


def test_a_group_without_splits_may_bridge_two():
    """a is a copy of b, c of d; b and d are pictures of one lesion."""
    known = records(
        ("a", "a", "train"), ("c", "c", "test"), ("b", "bridge", None), ("d", "bridge", None)
    )
    copies = copies_of(known, "ab", "cd")
    (lot,) = find_crossing_groups(known, copies)
    assert sorted(r.name for r in lot.records) == ["a", "b", "c", "d"]
    assert str(lot) == (
        "a (train), b: similarity 0.90 and, through their groups, c (test), d: similarity 0.90"
    )
    assert find_records_to_exclude([lot]) == {"a"}
    # Where that is allowed, the bridge is held out and the training picture stays.
    assert merge_groups(known, copies, official=True) == {"b": "c", "d": "c"}
    assert merge_groups(known, copies[::-1], official=True) == {"b": "c", "d": "c"}


def test_groups_that_copies_tie_in_a_ring_are_one_lot():
    known = records(*((n, n, "train") for n in "abc"), ("d", "d", "test"))
    (lot,) = find_crossing_groups(known, copies_of(known, "ab", "bc", "ca", "cd"))
    assert len(lot.records) == 4 and len(lot.clusters) == 4
    assert find_records_to_exclude([lot]) == {"a", "b", "c"}


def test_without_copies_nothing_crosses():
    assert find_crossing_groups(records(("a", "a", "train"), ("b", "b", "test")), []) == []
    assert find_crossing_groups([], []) == []
