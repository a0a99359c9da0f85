"""DatasetIndex: the pairs of a data set with their groups and official splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lesionseg.data.layouts import LAYOUTS
from lesionseg.data.merge import Roots, label_roots, list_roots, merge_datasets
from lesionseg.data.pairs import (
    SPLITS,
    Record,
    escape_unprintable,
    find_masks_without_image,
    unreadable_as_input_error,
)
from lesionseg.errors import InputError, format_some, suggest_name


@dataclass(frozen=True)
class DatasetIndex:
    """All pairs of one data set or of several, sorted by name.

    Attributes:
        root: the folder or manifest; of several data sets, their common parent folder.
        layout: the name of the layout; of several data sets, joined by " + ".
        records: the pairs.
        masks_without_image: file names of unmatched masks; empty for manifests.
    """

    root: Path
    layout: str
    records: tuple[Record, ...]
    masks_without_image: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(
        cls,
        roots: Roots,
        layout: str = "auto",
        *,
        lenient: bool = False,
        invert_masks: bool = False,
    ) -> DatasetIndex:
        """List the pairs of a folder, of a CSV manifest, or of several of them.

        Args:
            roots: one path, or a tuple of paths to merge in any order.
            layout: a name in LAYOUTS, or "auto".
            lenient: for audits of one data set: accept names and groups that lie in two official
                splits, and links to missing files.
            invert_masks: whether the masks show the skin instead of the lesion.

        Raises:
            InputError: the path is missing, unreadable or of no known layout; an image has no
                mask; a name occurs twice; a link is broken; a group lies in two official splits;
                or a data set is given twice or overlaps another one.
        """
        if isinstance(roots, tuple) and len(roots) != 1:
            index = cls._read_several(roots, layout)
        else:
            (root,) = list_roots(roots)
            with unreadable_as_input_error(root):
                index = cls._read_one(root, layout, lenient)
        if not invert_masks:
            return index
        return replace(index, records=tuple(replace(r, is_inverted=True) for r in index.records))

    @classmethod
    def _read_one(cls, root: Path, layout: str, lenient: bool) -> DatasetIndex:
        if not root.exists():
            raise InputError(
                f"data: no such folder: {root}; --data, DIR and --against take the folder of a "
                f"data set or a CSV manifest"
            )
        name, records = _read_records(root, layout)
        _check_unique_names(root, records, lenient)
        if not lenient:
            _check_links(root, records)
            _check_groups(root, records)
        unmatched = () if name == "csv" else find_masks_without_image(records)
        return cls(root, name, tuple(records), tuple(mask.name for mask in unmatched))

    @classmethod
    def _read_several(cls, roots: tuple[Path, ...], layout: str) -> DatasetIndex:
        labelled = sorted(zip(label_roots(roots), roots, strict=True))
        indices = {label: cls.read(root, layout) for label, root in labelled}
        merged = merge_datasets({label: index.records for label, index in indices.items()})
        records = sorted(merged, key=lambda r: r.name)
        parent = Path(os.path.commonpath([root.resolve() for root in roots]))
        _check_unique_names(parent, records)
        layouts = dict.fromkeys(index.layout for index in indices.values())
        unmatched = (name for index in indices.values() for name in index.masks_without_image)
        return cls(parent, " + ".join(layouts), tuple(records), tuple(unmatched))

    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits of names, file sizes, groups and official splits.

        Copies on different machines have the same fingerprint. It changes when an image is added,
        removed, renamed or rewritten with another file size.
        """
        digest = hashlib.sha256()
        for r in self.records:
            row = (r.name, r.image.stat().st_size, r.mask.stat().st_size, r.group, r.split)
            digest.update(repr(row).encode())
        return digest.hexdigest()[:16]


def find_divided_groups(records: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    """Return the groups that lie in several official splits, sorted, with these splits."""
    splits_of: dict[str, set[str]] = {}
    for r in records:
        if r.split:
            splits_of.setdefault(r.group, set()).add(r.split)
    return {
        group: tuple(sorted(splits, key=SPLITS.index))
        for group, splits in sorted(splits_of.items())
        if len(splits) > 1
    }


def _read_records(root: Path, layout: str) -> tuple[str, list[Record]]:
    """Return the name of the first layout that finds pairs, and its records."""
    if layout not in {"auto", *LAYOUTS}:
        raise InputError(f"data: unknown layout {layout!r} ({suggest_name(layout, LAYOUTS)})")
    candidates = LAYOUTS if layout == "auto" else {layout: LAYOUTS[layout]}
    for name, candidate in candidates.items():
        records = sorted(candidate.read(root), key=lambda r: (r.name, _split_rank(r)))
        if records:
            return name, records
    known = "; ".join(f"{name}: {each.description}" for name, each in candidates.items())
    raise InputError(f"data: {root}: no pairs of image and mask; expected {known}")


def _split_rank(record: Record) -> int:
    return SPLITS.index(record.split) if record.split else -1


def _check_unique_names(root: Path, records: Iterable[Record], lenient: bool = False) -> None:
    """Refuse names that occur twice; if ``lenient``, unless each is in another official split."""
    by_name: dict[str, list[Record]] = {}
    for r in records:
        by_name.setdefault(r.name.lower(), []).append(r)
    repeated = [
        same
        for same in by_name.values()
        if len(same) > 1 and not (lenient and len({r.split for r in same if r.split}) == len(same))
    ]
    if repeated:
        raise InputError(
            f"data: {root}: {len(repeated)} names occur twice: "
            f"{format_some(map(_format_repeated, repeated))}; names must be unique: rename or "
            f"remove all but one"
        )


def _format_repeated(records: list[Record]) -> str:
    names = " and ".join(dict.fromkeys(escape_unprintable(r.name) for r in records))
    splits = " and ".join(dict.fromkeys(r.split for r in records if r.split))
    return f"{names} ({splits})" if splits else names


def _check_links(root: Path, records: Iterable[Record]) -> None:
    files = (path for r in records for path in (r.image, r.mask))
    links = [path for path in files if path.is_symlink() and not path.exists()]
    if links:
        texts = (escape_unprintable(f"{path.name} -> {os.readlink(path)}") for path in links)
        raise InputError(
            f"data: {root}: {len(links)} files are links to missing files: {format_some(texts)}; "
            f"repair the links or remove the pairs"
        )


def _check_groups(root: Path, records: Iterable[Record]) -> None:
    divided = find_divided_groups(records)
    if divided:
        group, splits = next(iter(divided.items()))
        raise InputError(
            f"data: {root}: {len(divided)} groups lie in two official splits: "
            f"{format_some(map(escape_unprintable, divided))} "
            f"({escape_unprintable(group)} in {' and '.join(splits)}); "
            f"keep a patient's images together or drop the split"
        )
