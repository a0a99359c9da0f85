"""What is done about copies before pictures are split: put into one group, or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lesionseg.data.index import SPLITS, Record
from lesionseg.data.leaks import Copies, Member


def crossing(copies: Sequence[Copies]) -> list[Copies]:
    """Those in several official splits that are not known to be one group already."""
    return [c for c in copies if c.is_leak and len({m.record.group for m in c.members}) > 1]


def less_held_out(copies: Sequence[Copies]) -> set[str]:
    """Names of the copies to leave out, so that none is in two official splits.

    What is for testing stays before what is for validation, and either before training.
    """
    out: set[str] = set()
    for each in copies:
        splits = {m.record.split for m in each.members if m.record.split}
        if len(splits) > 1:
            kept = max(splits, key=SPLITS.index)
            out |= {m.record.name for m in each.members if m.record.split not in (None, kept)}
    return out


def one_group(
    records: Sequence[Record], copies: Sequence[Copies], *, official: bool
) -> dict[str, str]:
    """The groups of records, by name, that change where copies are put into one group.

    Groups that copies link become the first of them, whole. official: the official splits count,
    and copies in several of them stay apart.
    """
    order = {group: i for i, group in enumerate(dict.fromkeys(r.group for r in records))}
    home = {group: group for group in order}

    def root(group: str) -> str:
        while home[group] != group:
            group = home[group]
        return group

    for each in copies:
        for members in _together(each) if official else [each.members]:
            first, *others = sorted({root(m.record.group) for m in members}, key=order.__getitem__)
            home |= dict.fromkeys(others, first)
    return {r.name: root(r.group) for r in records if root(r.group) != r.group}


def regrouped(records: Sequence[Record], groups: Mapping[str, str]) -> tuple[Record, ...]:
    """The records, those whose names are keys of ``groups`` in these groups."""
    return tuple(replace(r, group=groups.get(r.name, r.group)) for r in records)


def _together(copies: Copies) -> list[list[Member]]:
    """The members by their official split; those without one go with what is held out most."""
    splits = {m.record.split for m in copies.members if m.record.split}
    most = max(splits, key=SPLITS.index, default=None)
    found: dict[str | None, list[Member]] = {}
    for m in copies.members:
        found.setdefault(m.record.split or most, []).append(m)
    return list(found.values())
