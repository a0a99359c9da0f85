"""What is done about copies before pictures are split."""

from lesionseg.data.index import Record
from lesionseg.data.leaks import Copies, Member
from lesionseg.data.regroup import crossing, less_held_out, one_group, regrouped
from tests.lesionseg.data.test_leaks import names


def records(*rows):
    """name, group, split."""
    return [Record(name, None, None, group, split) for name, group, split in rows]


def copies_of(known, *sets):
    return [
        Copies(tuple(Member("", r, None) for r in known if r.name in names), 0.9, exact=False)
        for names in sets
    ]


def test_copies_are_put_into_one_group_through_the_groups_that_they_link():
    known = records(*((n, g, None) for n, g in zip("abcdefg", "wwxxyzz", strict=True)))
    # b-c links w and x, d-e links x and y; z stays.
    groups = one_group(known, copies_of(known, "bc", "de"), official=False)
    assert groups == {"c": "w", "d": "w", "e": "w"}
    assert [r.group for r in regrouped(known, groups)] == ["w", "w", "w", "w", "w", "z", "z"]
    assert one_group(known, [], official=False) == {}
    assert regrouped(known, {}) == tuple(known)
    # In another order of the pairs, the same.
    assert one_group(known, copies_of(known, "de", "bc"), official=False) == groups


def test_official_splits_keep_copies_apart_that_lie_in_both():
    known = records(("a", "a", "train"), ("b", "b", "train"), ("c", "c", "test"), ("d", "d", None))
    copies = copies_of(known, "abcd")
    assert one_group(known, copies, official=True) == {"b": "a", "d": "c"}
    assert one_group(known, copies, official=False) == {"b": "a", "c": "a", "d": "a"}


def test_what_is_held_out_most_is_kept():
    known = records(
        ("a", "a", "train"), ("b", "b", "val"), ("c", "c", "test"), ("d", "d", "test"),
        ("e", "e", "train"), ("f", "f", "val"), ("g", "g", "train"), ("h", "h", "train"),
    )  # fmt: skip
    assert less_held_out(copies_of(known, "abcd", "ef", "gh")) == {"a", "b", "e"}


def test_copies_of_one_group_are_known_and_do_not_cross():
    known = records(
        ("a", "p", "train"), ("b", "p", "test"), ("c", "c", "train"), ("d", "d", "test")
    )
    assert [names(c) for c in crossing(copies_of(known, "ab", "cd"))] == [["c", "d"]]
