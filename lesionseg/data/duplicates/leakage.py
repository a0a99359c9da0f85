"""Leakage between official splits and between data sets.

A leak is one image in two official splits, or in two data sets that must be disjoint: as the same
file, or resized, recompressed, rotated, mirrored or cropped. A patient or lesion (group) in two
official splits is a leak too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.data.cache import Progress, map_parallel
from lesionseg.data.duplicates.audit import (
    DatasetAudit,
    PairAudit,
    audit_dataset,
    digest_full_image,
)
from lesionseg.data.duplicates.matching import Fingerprint, cluster_pairs, find_duplicate_pairs
from lesionseg.data.index import DatasetIndex, find_divided_groups
from lesionseg.data.merge import label_roots
from lesionseg.data.pairs import escape_unprintable
from lesionseg.errors import format_some

#: Incremented when a key of the JSON changes its meaning or is removed.
FORMAT = 1


@dataclass(frozen=True)
class DuplicateCluster:
    """Images that are near-duplicates of one another, directly or through others."""

    members: tuple[PairAudit, ...]
    similarity: float  # the lowest of the pairs that were compared; not all are
    exact: bool  # whether the members have equal pixels

    @property
    def is_leak(self) -> bool:
        """Whether the members are in two official splits or two data sets."""
        splits = {m.record.split for m in self.members} - {None}
        return len(splits) > 1 or self.is_across_datasets

    @property
    def is_across_datasets(self) -> bool:
        """Whether the members are in two data sets."""
        return len({m.dataset for m in self.members}) > 1

    def __str__(self) -> str:
        similarity = "identical" if self.exact else f"similarity {self.similarity:.2f}"
        return f"{format_some(self.sorted_members(), limit=4)}: {similarity}"

    def sorted_members(self) -> list[PairAudit]:
        """Return the members, starting with one of each data set and split."""
        first = {(m.dataset, m.record.split): m for m in reversed(self.members)}
        return sorted(self.members, key=lambda m: first[m.dataset, m.record.split] is not m)


@dataclass(frozen=True)
class SplitGroup:
    """A group that is in several official splits of one data set."""

    dataset: str
    group: str
    splits: tuple[str, ...]

    def __str__(self) -> str:
        splits = " and ".join(self.splits)
        suffix = f" of {self.dataset}" if self.dataset else ""
        return escape_unprintable(f"{self.group} in {splits}{suffix}")


@dataclass(frozen=True)
class LeakageReport:
    """Audits by the name of their data set ("" for a single one), and their leaks."""

    audits: Mapping[str, DatasetAudit]
    clusters: tuple[DuplicateCluster, ...]  # near-duplicates, leaks first
    split_groups: tuple[SplitGroup, ...]

    @property
    def leaks(self) -> list[DuplicateCluster]:
        """The clusters in two splits or two data sets."""
        return [c for c in self.clusters if c.is_leak]

    def describe_leaks(self) -> str | None:
        """Describe all leaks in one line, naming the first few; None without leaks."""
        across = [c for c in self.leaks if c.is_across_datasets]
        within = [c for c in self.leaks if not c.is_across_datasets]
        parts = []
        for items, noun, place in (
            (across, "image", "two data sets"),
            (within, "image", "two official splits"),
            (self.split_groups, "group", "two official splits"),
        ):
            if items:
                count = f"1 {noun} is" if len(items) == 1 else f"{len(items)} {noun}s are"
                more = f"; and {len(items) - 3} more" if len(items) > 3 else ""
                parts.append(f"{count} in {place}: {'; '.join(map(str, items[:3]))}{more}")
        return "; ".join(parts) or None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON; docs/data.md describes its keys."""
        return {
            "format": FORMAT,
            "leaks": len(self.leaks) + len(self.split_groups),
            "sets": [{"set": name} | audit.to_dict() for name, audit in self.audits.items()],
            "duplicates": [
                {
                    "exact": cluster.exact,
                    "similarity": cluster.similarity,
                    "leak": cluster.is_leak,
                    "images": [
                        {"set": m.dataset, "name": r.name, "split": r.split, "group": r.group}
                        for m in cluster.members
                        for r in [m.record]
                    ],
                }
                for cluster in self.clusters
            ],
            "split_groups": [
                {"set": g.dataset, "group": g.group, "splits": list(g.splits)}
                for g in self.split_groups
            ],
        }


def audit_datasets(
    roots: Sequence[Path],
    layout: str = "auto",
    on_progress: Progress = lambda done, total: None,
    *,
    invert_masks: bool = False,
) -> LeakageReport:
    """Audit data sets, folders or CSV manifests, and find leaks within and between them.

    ``layout`` is that of the first data set; the layouts of the others are detected. If
    ``invert_masks``, the masks of the first data set show the skin instead of the lesion.

    Raises:
        InputError: a data set does not exist, is passed twice, or has an unknown layout.
    """
    names = label_roots(roots) if len(roots) > 1 else [""]
    first = DatasetIndex.read(roots[0], layout, lenient=True, invert_masks=invert_masks)
    indices = [first, *(DatasetIndex.read(root, lenient=True) for root in roots[1:])]
    audits = {
        name: audit_dataset(index, on_progress, name)
        for name, index in zip(names, indices, strict=True)
    }
    return find_leaks(audits, on_progress)


def find_leaks(
    audits: Mapping[str, DatasetAudit], on_progress: Progress = lambda done, total: None
) -> LeakageReport:
    """Find near-duplicates and split groups in audited data sets; unusable pairs are skipped."""
    members = [pair for audit in audits.values() for pair in audit.pairs if pair.fingerprint]
    clusters = [
        DuplicateCluster(
            tuple(members[i] for i in sorted({i for p in pairs for i in (p.first, p.second)})),
            min(pair.similarity for pair in pairs),
            all(pair.exact for pair in pairs),
        )
        for pairs in cluster_pairs(find_duplicate_pairs(_refine_digests(members), on_progress))
    ]
    clusters.sort(key=lambda c: (not c.is_leak, not c.exact, -c.similarity))
    return LeakageReport(audits, tuple(clusters), tuple(_find_split_groups(audits)))


def _refine_digests(members: Sequence[PairAudit]) -> list[Fingerprint]:
    """Return the fingerprints, with equal digests only for images that are equal at full size.

    Images may be equal when reduced and yet differ; the few candidates are read again.
    """
    fingerprints = [m.fingerprint for m in members if m.fingerprint]
    counts = Counter(f.digest for f in fingerprints)
    ambiguous = [i for i, f in enumerate(fingerprints) if counts[f.digest] > 1 and not f.is_flat]
    digests = map_parallel(digest_full_image, [members[i].record for i in ambiguous])
    for i, digest in zip(ambiguous, digests, strict=True):
        fingerprints[i] = fingerprints[i]._replace(digest=digest)
    return fingerprints


def _find_split_groups(audits: Mapping[str, DatasetAudit]) -> Iterator[SplitGroup]:
    for dataset, audit in audits.items():
        # An image without a group has its name as group: equal names do not imply one lesion.
        groups = {r.group for r in audit.index.records if r.split and r.name != r.group}
        for group, splits in find_divided_groups(audit.index.records).items():
            if group in groups:
                yield SplitGroup(dataset, group, splits)
