"""Several data sets used together: labels, name conflicts, common groups, overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, format_some

#: The folder or manifest of a data set, or those of several data sets.
Roots = Path | tuple[Path, ...]

RecordsByLabel = Mapping[str, Sequence[Record]]

#: A group of one data set: its label and the group's name.
_Node = tuple[str, str]


def list_roots(roots: Roots) -> tuple[Path, ...]:
    """Return the paths as a tuple."""
    return (roots,) if isinstance(roots, Path) else tuple(roots)


def label_roots(roots: Sequence[Path]) -> list[str]:
    """Return a unique label for each data set: its folder, with parent folders if necessary.

    Raises:
        InputError: a data set is given twice.
    """
    paths = [root.resolve() for root in roots]
    repeated = next((p for p, n in Counter(paths).items() if n > 1), None)
    if repeated is not None:
        raise InputError(f"data: {repeated} is given twice; give each data set once")
    labels = []
    for path in paths:
        others = [other for other in paths if other != path]
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        labels.append("-".join(part for part in path.parts[-depth:] if part != path.anchor))
    return labels


def merge_datasets(datasets: RecordsByLabel) -> list[Record]:
    """Merge the records of several data sets.

    A name that occurs in two data sets is prefixed with the label in both. Groups of different
    data sets are different groups even if they have the same name, unless they contain an image
    of the same name: ISIC_0024306 is one image wherever it occurs, so that all images of its
    lesion form one group. The result does not depend on the order of the data sets.

    Args:
        datasets: records by label.

    Raises:
        InputError: a file is part of two data sets.
    """
    _check_no_overlap(datasets)
    counts = Counter(r.name.lower() for records in datasets.values() for r in records)
    groups = _name_groups(datasets)
    return [
        replace(
            r,
            name=f"{label}-{r.name}" if counts[r.name.lower()] > 1 else r.name,
            group=groups[label, r.group],
            dataset=r.dataset or label,
            source=label,
        )
        for label, records in datasets.items()
        for r in records
    ]


def _check_no_overlap(datasets: RecordsByLabel) -> None:
    owners: dict[Path, str] = {}
    for label, records in datasets.items():
        images = {r.image.resolve() for r in records}
        shared = sorted(images & owners.keys())
        if shared:
            raise InputError(
                f"--data: {len(shared)} images of {label} are also part of {owners[shared[0]]}: "
                f"{format_some(p.name for p in shared)}; give folders that do not overlap"
            )
        owners |= dict.fromkeys(images, label)


def _name_groups(datasets: RecordsByLabel) -> dict[_Node, str]:
    """Return the name of each group after merging."""
    merged = _join_groups(datasets)
    counts = Counter(min(group for _, group in nodes) for nodes in merged)
    names: dict[_Node, str] = {}
    for nodes in merged:
        label, _ = min(nodes)
        name = min(group for _, group in nodes)
        names |= dict.fromkeys(nodes, name if counts[name] == 1 else f"{label}-{name}")
    return names


def _join_groups(datasets: RecordsByLabel) -> list[set[_Node]]:
    """Return sets of groups that share an image name, directly or through other groups."""
    from scipy.cluster.hierarchy import DisjointSet  # slow to import

    joined = DisjointSet()
    first: dict[str, _Node] = {}
    for label, records in datasets.items():
        for r in records:
            node = (label, r.group)
            joined.add(node)
            joined.merge(first.setdefault(r.name.lower(), node), node)
    subsets: list[set[_Node]] = joined.subsets()
    return subsets
