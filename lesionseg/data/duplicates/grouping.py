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
    merged = DisjointSet(record.group for record in records)
    for cluster in clusters:
        for member in cluster.members:
            merged.merge(cluster.members[0].record.group, member.record.group)
    linked: dict[str, tuple[list[Record], list[DuplicateCluster]]] = {}
    for record in records:
        linked.setdefault(merged[record.group], ([], []))[0].append(record)
    for cluster in clusters:
        linked[merged[cluster.members[0].record.group]][1].append(cluster)
    return [
        groups
        for group, (its_records, its_clusters) in linked.items()
        for groups in [LinkedGroups(tuple(its_records), tuple(its_clusters))]
        if len(groups.splits) > 1 and merged.subset_size(group) > 1
    ]


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
    splits: dict[str, set[str | None]] = {}
    for record in records:
        splits.setdefault(record.group, set()).add(record.split)
    merged = DisjointSet(splits)

    def is_mergeable(a: str, b: str) -> bool:
        splits_a, splits_b = (
            set().union(*(splits[group] for group in merged.subset(name))) - {None}
            for name in (a, b)
        )
        agree = not splits_a or not splits_b or splits_a == splits_b
        return not official or agree or merged.connected(a, b)

    linked = [[m.record for m in c.members if m.record.name in used] for c in clusters]
    # Test images first: an image without a split joins them rather than training images.
    for each in sorted(linked, key=lambda each: min(map(_split_order, each), default=0)):
        targets: list[str] = []
        for record in sorted(each, key=_split_order):
            target = next((t for t in targets if is_mergeable(t, record.group)), None)
            if target is None:
                targets.append(record.group)
            else:
                merged.merge(target, record.group)
    first: dict[str, str] = {}
    names = {group: first.setdefault(merged[group], group) for group in splits}
    return {r.name: names[r.group] for r in records if names[r.group] != r.group}


def apply_groups(records: Sequence[Record], groups: Mapping[str, str]) -> tuple[Record, ...]:
    """Return the records with the group of each name in ``groups`` replaced."""
    return tuple(replace(r, group=groups.get(r.name, r.group)) for r in records)


def _split_order(record: Record) -> int:
    """Return 0 for test, 1 for val, 2 for train, 3 without an official split."""
    return len(SPLITS) - 1 - SPLITS.index(record.split) if record.split else len(SPLITS)
