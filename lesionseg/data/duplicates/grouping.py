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
    linked_groups = [{member.record.group for member in cluster.members} for cluster in clusters]
    for first, *others in linked_groups:
        for other in others:
            merged.merge(first, other)
    records_of: dict[str, list[Record]] = {}
    clusters_of: dict[str, list[DuplicateCluster]] = {}
    for record in records:
        records_of.setdefault(merged[record.group], []).append(record)
    for groups, cluster in zip(linked_groups, clusters, strict=True):
        clusters_of.setdefault(merged[min(groups)], []).append(cluster)
    linked = [
        LinkedGroups(tuple(records_of[root]), tuple(clusters_of.get(root, ())))
        for root in records_of
        if merged
    ]
    return [each for each in linked if len(each.splits) > 1]


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
