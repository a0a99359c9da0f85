"""Leakage between official splits and between data sets.

A leak is one image in two official splits, or in two data sets that must be disjoint: as the same
file, or resized, recompressed, rotated, mirrored or cropped. A patient or lesion (group) in two
official splits is a leak too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.data.duplicates.audit import (
    DatasetAudit,
    PairAudit,
    audit_dataset,
    digest_full_images,
)
from lesionseg.data.duplicates.matching import (
    DuplicatePair,
    Fingerprint,
    Progress,
    cluster_pairs,
    find_duplicate_pairs,
)
from lesionseg.data.pairs import SPLITS, Record, escape_unprintable, unreadable_as_input_error
from lesionseg.errors import InputError, format_some

#: Incremented when a key of the JSON changes its meaning or is removed.
FORMAT = 1


@dataclass(frozen=True)
class Member:
    """An image of an audited data set; ``dataset`` is "" if there is only one."""

    dataset: str
    record: Record
    pair: PairAudit

    def __str__(self) -> str:
        place = " ".join(part for part in (self.dataset, self.record.split) if part)
        return escape_unprintable(f"{self.record.name} ({place})" if place else self.record.name)


@dataclass(frozen=True)
class DuplicateCluster:
    """Images that are near-duplicates of one another, directly or through others."""

    members: tuple[Member, ...]
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

    def sorted_members(self) -> list[Member]:
        """Return the members, starting with one of each data set and split."""
        first: dict[tuple[str, str | None], Member] = {}
        for member in self.members:
            first.setdefault((member.dataset, member.record.split), member)
        distinct = list(first.values())
        return distinct + [m for m in self.members if m not in distinct]


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
        parts = [
            _describe(across, "image is", "images are", "two data sets"),
            _describe(within, "image is", "images are", "two official splits"),
            _describe(self.split_groups, "group is", "groups are", "two official splits"),
        ]
        return "; ".join(part for part in parts if part) or None

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON; docs/data.md describes its keys."""
        return {
            "format": FORMAT,
            "leaks": len(self.leaks) + len(self.split_groups),
            "sets": [_audit_to_dict(name, audit) for name, audit in self.audits.items()],
            "duplicates": [_cluster_to_dict(cluster) for cluster in self.clusters],
            "split_groups": [
                {"set": g.dataset, "group": g.group, "splits": list(g.splits)}
                for g in self.split_groups
            ],
        }


def audit_datasets(
    roots: Sequence[Path],
    layout: str = "auto",
    on_progress: Progress = lambda done, total: None,
) -> LeakageReport:
    """Audit data sets and find leaks within and between them.

    Args:
        roots: folders or CSV manifests.
        layout: of the first data set; the layouts of the others are detected.
        on_progress: called with the number of items done and the total.

    Raises:
        InputError: a data set does not exist, is passed twice, or has an unknown layout.
    """
    for root in roots:
        with unreadable_as_input_error(root):
            exists = root.exists()
        if not exists:
            raise InputError(
                f"data check: no such folder: {root}; DIR and --against take the folder of a data "
                f"set or a CSV manifest"
            )
    counts = Counter(root.resolve() for root in roots)
    repeated = [str(path) for path, count in counts.items() if count > 1]
    if repeated:
        raise InputError(
            f"data check: {repeated[0]} is given twice; --against takes another data set"
        )
    layouts = [layout] + ["auto"] * (len(roots) - 1)
    audits = {
        name: audit_dataset(root, layout, on_progress)
        for name, root, layout in zip(_dataset_names(roots), roots, layouts, strict=True)
    }
    return find_leaks(audits, on_progress)


def find_leaks(
    audits: Mapping[str, DatasetAudit], on_progress: Progress = lambda done, total: None
) -> LeakageReport:
    """Find near-duplicates and split groups in audited data sets; unusable pairs are skipped."""
    members = [
        Member(name, record, pair)
        for name, audit in audits.items()
        for record, pair in zip(audit.index.records, audit.pairs, strict=True)
        if pair.fingerprint is not None
    ]
    pairs = find_duplicate_pairs(_refine_digests(members), on_progress)
    clusters = _build_clusters(members, pairs)
    clusters.sort(key=lambda c: (not c.is_leak, not c.exact, -c.similarity))
    split_groups = [
        group
        for name, audit in audits.items()
        for group in _find_split_groups(name, audit.index.records)
    ]
    return LeakageReport(audits, tuple(clusters), tuple(split_groups))


def _refine_digests(members: Sequence[Member]) -> list[Fingerprint]:
    """Return the fingerprints, with equal digests only for images that are equal at full size.

    Images may be equal when reduced and yet differ; the few candidates are read again.
    """
    fingerprints = [m.pair.fingerprint for m in members if m.pair.fingerprint is not None]
    counts = Counter(f.digest for f in fingerprints)
    ambiguous = [i for i, f in enumerate(fingerprints) if counts[f.digest] > 1 and not f.is_flat]
    digests = digest_full_images([members[i].record for i in ambiguous])
    for i, digest in zip(ambiguous, digests, strict=True):
        fingerprints[i] = fingerprints[i]._replace(digest=digest)
    return fingerprints


def _build_clusters(
    members: Sequence[Member], pairs: Sequence[DuplicatePair]
) -> list[DuplicateCluster]:
    clusters = cluster_pairs(len(members), pairs)
    cluster_of = {i: k for k, positions in enumerate(clusters) for i in positions}
    pairs_of: list[list[DuplicatePair]] = [[] for _ in clusters]
    for pair in pairs:
        pairs_of[cluster_of[pair.first]].append(pair)
    return [
        DuplicateCluster(
            tuple(members[i] for i in positions),
            min(pair.similarity for pair in links),
            all(pair.exact for pair in links),
        )
        for positions, links in zip(clusters, pairs_of, strict=True)
    ]


def _find_split_groups(dataset: str, records: Sequence[Record]) -> list[SplitGroup]:
    splits_of: dict[str, set[str]] = {}
    names_of: dict[str, set[str]] = {}
    for record in records:
        if record.split:
            splits_of.setdefault(record.group, set()).add(record.split)
            names_of.setdefault(record.group, set()).add(record.name)
    # An image without a group has its name as group: equal names do not imply one lesion.
    return [
        SplitGroup(dataset, group, tuple(sorted(splits, key=SPLITS.index)))
        for group, splits in sorted(splits_of.items())
        if len(splits) > 1 and names_of[group] != {group}
    ]


def _dataset_names(roots: Sequence[Path]) -> list[str]:
    """Name data sets after their folders, or by whole paths where these are ambiguous."""
    if len(roots) == 1:
        return [""]
    short = [root.resolve().name for root in roots]
    counts = Counter(short)
    return [
        escape_unprintable(name if counts[name] == 1 else str(root))
        for name, root in zip(short, roots, strict=True)
    ]


def _describe(items: Sequence[object], singular: str, plural: str, place: str) -> str:
    if not items:
        return ""
    more = f"; and {len(items) - 3} more" if len(items) > 3 else ""
    count = f"{len(items)} {singular if len(items) == 1 else plural}"
    return f"{count} in {place}: {'; '.join(map(str, items[:3]))}{more}"


def _cluster_to_dict(cluster: DuplicateCluster) -> dict[str, Any]:
    return {
        "exact": cluster.exact,
        "similarity": cluster.similarity,
        "leak": cluster.is_leak,
        "images": [
            {
                "set": m.dataset,
                "name": m.record.name,
                "split": m.record.split,
                "group": m.record.group,
            }
            for m in cluster.members
        ],
    }


def _audit_to_dict(name: str, audit: DatasetAudit) -> dict[str, Any]:
    splits = Counter(r.split for r in audit.index.records if r.split)
    sizes = Counter(p.shape for p in audit.usable)
    unusual = audit.unusual_masks()
    return {
        "set": name,
        "root": str(audit.index.root),
        "layout": audit.index.layout,
        "pairs": len(audit.pairs),
        "groups": len({r.group for r in audit.index.records}),
        "official_splits": dict(splits),
        "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in sizes.most_common()],
        "masks_without_image": list(audit.index.masks_without_image),
        "unusable": [{"name": p.name, "problem": p.problem} for p in audit.pairs if p.problem],
        **{kind: [p.name for p in unusual[kind]] for kind in ("empty", "full", "not_binary")},
        "on_border": [p.name for p in audit.usable if p.touches_border],
        "components": {p.name: p.components for p in unusual["several_components"]},
        "areas": {p.name: p.area for p in audit.usable},
    }
