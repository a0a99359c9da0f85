"""Handling of near-duplicates before a split: merge them into one group, or exclude them.

Near-duplicates link the groups of their images: if one image of a lesion has a copy, the copy shows
that lesion too. Whole groups are therefore handled, not the copies alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.cluster.hierarchy import DisjointSet

from lesionseg.data.duplicates.leakage import DuplicateCluster
from lesionseg.data.pairs import SPLITS, Record


@dataclass(frozen=True)
class LinkedGroups:
    """Groups that near-duplicates link: all their records, and the near-duplicates."""

    records: tuple[Record, ...]
    clusters: tuple[DuplicateCluster, ...]

    @property
    def splits(self) -> list[str]:
        """The official splits of the records, in the order train, val, test."""
        return sorted({r.split for r in self.records if r.split}, key=SPLITS.index)

    @property
    def n_linked_groups(self) -> int:
        """Number of groups with near-duplicates."""
        return len({m.record.group for cluster in self.clusters for m in cluster.members})

    def __str__(self) -> str:
        # A cluster that is in two splits itself explains the leak best.
        clusters = [c for c in self.clusters if c.is_leak] or list(self.clusters)
        return " and, through their groups, ".join(map(str, clusters[:3]))


def find_crossing_groups(
    records: Sequence[Record], clusters: Sequence[DuplicateCluster]
) -> list[LinkedGroups]:
    """Return the linked groups that are in several official splits.

    A single group in several splits is not among them: the index reports it.
    """
    merged = _MergedGroups(records)
    for cluster in clusters:
        merged.merge(member.record.group for member in cluster.members)
    names = merged.names()
    records_of: dict[str, list[Record]] = {}
    clusters_of: dict[str, list[DuplicateCluster]] = {}
    for record in records:
        records_of.setdefault(names[record.group], []).append(record)
    for cluster in clusters:
        groups = {member.record.group for member in cluster.members}
        clusters_of.setdefault(names[min(groups)], []).append(cluster)
    linked = (
        LinkedGroups(tuple(records_of[name]), tuple(clusters_of.get(name, ())))
        for name in records_of
    )
    return [each for each in linked if len(each.splits) > 1 and each.n_linked_groups > 1]


def find_records_to_exclude(crossing: Iterable[LinkedGroups]) -> set[str]:
    """Return the names of the records to exclude so that no lesion is in two official splits.

    Test images are kept rather than validation images, and these rather than training images.
    """
    return {
        record.name
        for groups in crossing
        for record in groups.records
        if record.split not in (None, groups.splits[-1])
    }


def merge_groups(
    records: Sequence[Record], clusters: Sequence[DuplicateCluster], *, official: bool
) -> dict[str, str]:
    """Merge the groups of near-duplicates.

    Args:
        records: the records in use; other members of the clusters are ignored.
        clusters: the near-duplicates.
        official: whether the official splits are used; groups are then not merged if that would
            unite images of different splits.

    Returns:
        The new group of each record whose group changes, by record name. Merged groups take the
        name of the first of them.
    """
    merged = _MergedGroups(records)
    used = {r.name for r in records}
    linked = [[m.record for m in c.members if m.record.name in used] for c in clusters]
    # Test images first: an image without a split joins them rather than training images.
    for each in sorted(linked, key=lambda each: min(map(_split_order, each), default=0)):
        ordered = sorted(each, key=_split_order)
        merged.merge((r.group for r in ordered), keep_splits_apart=official)
    names = merged.names()
    return {r.name: names[r.group] for r in records if names[r.group] != r.group}


def apply_groups(records: Sequence[Record], groups: Mapping[str, str]) -> tuple[Record, ...]:
    """Return the records with the group of each name in ``groups`` replaced."""
    return tuple(replace(r, group=groups.get(r.name, r.group)) for r in records)


def _split_order(record: Record) -> int:
    """Return 0 for test, 1 for val, 2 for train, 3 without an official split."""
    return len(SPLITS) - 1 - SPLITS.index(record.split) if record.split else len(SPLITS)


class _MergedGroups:
    """Disjoint sets of groups."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._splits: dict[str, set[str | None]] = {}
        for record in records:
            self._splits.setdefault(record.group, set()).add(record.split)
        self._sets = DisjointSet(self._splits)

    def names(self) -> dict[str, str]:
        """Return for each group the first group it is merged with, in the order of the records."""
        first: dict[str, str] = {}
        return {group: first.setdefault(self._sets[group], group) for group in self._splits}

    def merge(self, groups: Iterable[str], *, keep_splits_apart: bool = False) -> None:
        """Merge groups; with keep_splits_apart only those without conflicting official splits."""
        targets: list[str] = []
        for group in groups:
            for target in targets:
                if not (keep_splits_apart and self._conflict(target, group)):
                    self._sets.merge(target, group)
                    break
            else:
                targets.append(group)

    def _conflict(self, a: str, b: str) -> bool:
        splits_a, splits_b = self._official_splits(a), self._official_splits(b)
        different = bool(splits_a and splits_b and splits_a != splits_b)
        return different and not self._sets.connected(a, b)

    def _official_splits(self, group: str) -> set[str | None]:
        merged = (self._splits[other] for other in self._sets.subset(group))
        return set().union(*merged) - {None}
