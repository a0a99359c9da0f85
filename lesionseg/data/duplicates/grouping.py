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
    groups = merge_groups(records, clusters, official=False)
    group_of = {record.name: groups.get(record.name, record.group) for record in records}
    linked: dict[str, tuple[list[Record], list[DuplicateCluster]]] = {}
    for record in records:
        linked.setdefault(group_of[record.name], ([], []))[0].append(record)
    for cluster in clusters:
        linked[group_of[cluster.members[0].record.name]][1].append(cluster)
    candidates = [LinkedGroups(tuple(members), tuple(links)) for members, links in linked.values()]
    return [c for c in candidates if len(c.splits) > 1 and len({r.group for r in c.records}) > 1]


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
    used = {record.name for record in records}
    splits: dict[str, set[str]] = {}
    for record in records:
        splits.setdefault(record.group, set())
        if official and record.split:
            splits[record.group].add(record.split)
    merged = DisjointSet(splits)

    def list_splits(group: str) -> set[str]:
        return set().union(*(splits[other] for other in merged.subset(group)))

    linked = [[m.record for m in c.members if m.record.name in used] for c in clusters]
    # Test images first: an image without a split joins them rather than training images.
    for each in sorted(linked, key=lambda each: min(map(_split_order, each), default=0)):
        targets: list[str] = []
        for group in [record.group for record in sorted(each, key=_split_order)]:
            for target in targets:
                a, b = list_splits(target), list_splits(group)
                if not a or not b or a == b or merged.connected(target, group):
                    merged.merge(target, group)
                    break
            else:
                targets.append(group)
    first: dict[str, str] = {}
    names = {group: first.setdefault(merged[group], group) for group in splits}
    return {r.name: names[r.group] for r in records if names[r.group] != r.group}


def apply_groups(records: Sequence[Record], groups: Mapping[str, str]) -> tuple[Record, ...]:
    """Return the records with the group of each name in ``groups`` replaced."""
    return tuple(replace(r, group=groups.get(r.name, r.group)) for r in records)


def _split_order(record: Record) -> int:
    """Return 0 for test, 1 for val, 2 for train, 3 without an official split."""
    return len(SPLITS) - 1 - SPLITS.index(record.split) if record.split else len(SPLITS)
