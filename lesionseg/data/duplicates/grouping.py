"""What is done about copies before pictures are split: put into one group, or left out.

Copies link the groups that they belong to: who shows a lesion of which another picture is a copy
shows that lesion too. So whole groups are judged, not the copies alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.cluster.hierarchy import DisjointSet

from lesionseg.data.duplicates.leaks import Copies
from lesionseg.data.index import SPLITS, Record


@dataclass(frozen=True)
class Linked:
    """Groups that copies link, directly or through others: all their records, and the copies."""

    records: tuple[Record, ...]
    copies: tuple[Copies, ...]

    @property
    def splits(self) -> list[str]:
        """The official splits that they lie in, the one that is held out most last."""
        return sorted({r.split for r in self.records if r.split}, key=SPLITS.index)

    def __str__(self) -> str:
        # Copies that lie in two splits themselves say it best; else what links them is said.
        shown = [c for c in self.copies if c.is_leak] or list(self.copies)
        return " and, through their groups, ".join(map(str, shown[:3]))


def crossing(records: Sequence[Record], copies: Sequence[Copies]) -> list[Linked]:
    """Groups in several official splits that only their copies tell to be one."""
    homes = _Homes(records)
    for each in copies:
        homes.link(m.record.group for m in each.members)
    by_home: dict[str, tuple[list[Record], list[Copies]]] = {}
    for r in records:
        by_home.setdefault(homes.of(r.group), ([], []))[0].append(r)
    for each in copies:
        by_home[homes.of(each.members[0].record.group)][1].append(each)
    lots = (Linked(tuple(known), tuple(links)) for known, links in by_home.values())
    return [
        lot
        for lot in lots
        if len(lot.splits) > 1 and len({m.record.group for c in lot.copies for m in c.members}) > 1
    ]


def less_held_out(crossed: Iterable[Linked]) -> set[str]:
    """Names of the records to leave out, so that no lesion is in two official splits.

    What is for testing stays before what is for validation, and either before training.
    """
    return {r.name for lot in crossed for r in lot.records if r.split not in (None, lot.splits[-1])}


def one_group(
    records: Sequence[Record], copies: Sequence[Copies], *, official: bool
) -> dict[str, str]:
    """The groups of records, by name, that change where copies are put into one group.

    records: those that are used; others are passed over in ``copies``. Groups that copies link
    become the first of them, whole. official: the official splits count, and groups stay apart
    whose link would bring pictures of several of them together.
    """
    homes = _Homes(records)
    used = {r.name for r in records}
    lots = [[m.record for m in each.members if m.record.name in used] for each in copies]
    # What is held out most comes first, and so takes what has no split of its own.
    for lot in sorted(lots, key=lambda lot: min(map(_openness, lot), default=0)):
        homes.link((r.group for r in sorted(lot, key=_openness)), apart=official)
    return {r.name: homes.of(r.group) for r in records if homes.of(r.group) != r.group}


def regrouped(records: Sequence[Record], groups: Mapping[str, str]) -> tuple[Record, ...]:
    """The records, those whose names are keys of ``groups`` in these groups."""
    return tuple(replace(r, group=groups.get(r.name, r.group)) for r in records)


def _openness(record: Record) -> int:
    """0 for what is held out most, the most for what has no official split."""
    return len(SPLITS) - 1 - SPLITS.index(record.split) if record.split else len(SPLITS)


class _Homes:
    """Which groups are one, each lot called by the first of them in the order of the records."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.lots = DisjointSet(dict.fromkeys(r.group for r in records))
        self.order = {group: i for i, group in enumerate(self.lots)}
        self.first: dict[str, str] = {group: group for group in self.lots}
        self.splits: dict[str, set[str]] = {group: set() for group in self.lots}
        for r in records:
            if r.split:
                self.splits[r.group].add(r.split)

    def of(self, group: str) -> str:
        return self.first[self.lots[group]]

    def link(self, groups: Iterable[str], *, apart: bool = False) -> None:
        """Makes groups one. apart: but not with such as lie in other official splits."""
        heads: list[str] = []
        for group in groups:
            fits = (g for g in heads if not (apart and self._torn_by(g, group)))
            known = next(fits, None)
            if known is None:
                heads.append(group)
            else:
                self._merge(known, group)

    def _torn_by(self, a: str, b: str) -> bool:
        a, b = self.lots[a], self.lots[b]
        mine, theirs = self.splits[a], self.splits[b]
        return a != b and bool(mine and theirs and mine != theirs)

    def _merge(self, a: str, b: str) -> None:
        a, b = self.lots[a], self.lots[b]
        first = min(self.first[a], self.first[b], key=self.order.__getitem__)
        splits = self.splits[a] | self.splits[b]
        self.lots.merge(a, b)
        self.first[self.lots[a]], self.splits[self.lots[a]] = first, splits
