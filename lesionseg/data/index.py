"""DatasetIndex: which image belongs to which mask, to which patient or lesion, to which split."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from lesionseg.data.layouts import LAYOUTS
from lesionseg.data.pairs import (
    MASK_SUFFIXES,
    PICTURES,
    SPLITS,
    Record,
    is_dangling,
    looking_into,
    pair,
    pictures,
    printable,
    without_image,
)
from lesionseg.data.sets import Roots, each_root, labels, merge
from lesionseg.errors import InputError, nearest, some

__all__ = [
    "LAYOUTS",
    "MASK_SUFFIXES",
    "PICTURES",
    "SPLITS",
    "DatasetIndex",
    "Record",
    "pair",
    "pictures",
]


@dataclass(frozen=True)
class DatasetIndex:
    """All pairs of a data set, sorted by name.

    Of several sets together, root is the folder that all of them lie in. masks_without_image:
    files' names, of layouts that match masks by name; a manifest may leave out what it likes.
    """

    root: Path
    layout: str
    records: tuple[Record, ...]
    masks_without_image: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, roots: Roots, layout: str = "auto", *, torn: bool = False) -> DatasetIndex:
        """Lists the pairs below a folder, or of a CSV manifest, or of several of them together.

        Several are the same index in whatever order (``lesionseg.data.sets.merge``).
        torn: of one set, as an audit wants it, take what is wrong with it as it is: groups and
            names that lie in two official splits, links to what is not there.
        Raises InputError: nothing there or not readable, no known layout, images without mask, one
        name twice, a link to what is not there, a group in two official splits of one set, a set
        that is given twice or overlaps another.
        """
        if isinstance(roots, tuple) and len(roots) != 1:
            return cls._together(roots, layout)
        (root,) = each_root(roots)
        with looking_into(root):
            return cls._alone(root, layout, torn=torn)

    @classmethod
    def _alone(cls, root: Path, layout: str, *, torn: bool) -> DatasetIndex:
        if not root.exists():
            raise InputError(f"data: no such folder: {root}; --data takes the data set's folder")
        name = _recognise(root) if layout == "auto" else layout
        if name not in LAYOUTS:
            raise InputError(f"data: unknown layout {name!r} ({nearest(name, LAYOUTS)})")
        # Names that stand twice lie as their splits do, whatever order a disk lists them in.
        records = sorted(LAYOUTS[name].read(root), key=lambda r: (r.name, _rank(r)))
        if not records:
            raise InputError(f"data: {root}: no pair of image and mask ({LAYOUTS[name].about})")
        _refuse_doubles(root, records, torn=torn)
        if not torn:
            _refuse_dangling(root, records)
            _refuse_groups_across_splits(root, records)
        alone = () if name == "csv" else (mask.name for mask in without_image(records))
        return cls(root, name, tuple(records), tuple(alone))

    @classmethod
    def _together(cls, roots: tuple[Path, ...], layout: str) -> DatasetIndex:
        format_step = sorted(zip(labels(roots), roots, strict=True))
        read = {label: cls.read(root, layout) for label, root in format_step}
        records = sorted(
            merge({label: index.records for label, index in read.items()}), key=lambda r: r.name
        )
        top = Path(os.path.commonpath([root.resolve() for root in roots]))
        _refuse_doubles(top, records)
        layouts = dict.fromkeys(index.layout for index in read.values())
        alone = tuple(name for index in read.values() for name in index.masks_without_image)
        return cls(top, " + ".join(layouts), tuple(records), alone)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of names, file sizes, groups and official splits.

        The same on every machine that holds a copy; a picture added, removed, renamed or
        rewritten to another size in bytes changes it.
        """
        digest = hashlib.sha256()
        for r in self.records:
            row = (r.name, r.image.stat().st_size, r.mask.stat().st_size, r.group, r.split)
            digest.update(repr(row).encode())
        return digest.hexdigest()[:16]


def _recognise(root: Path) -> str:
    for name, layout in LAYOUTS.items():
        if layout.fits(root):
            return name
    known = "; ".join(f"{name}: {layout.about}" for name, layout in LAYOUTS.items())
    raise InputError(f"data: {root}: no pairs in a known layout ({known})")


def _rank(record: Record) -> int:
    return SPLITS.index(record.split) if record.split else -1


def _refuse_doubles(root: Path, records: list[Record], *, torn: bool = False) -> None:
    """torn: names that stand in official splits that differ are no doubles."""
    format_step: dict[str, list[Record]] = {}
    for r in records:
        format_step.setdefault(r.name.lower(), []).append(r)
    doubles = [same for same in format_step.values() if len(same) > 1]
    if torn:
        doubles = [same for same in doubles if not _lie_in_as_many_splits(same)]
    if doubles:
        raise InputError(
            f"data: {root}: {len(doubles)} names stand twice: {some(map(_double, doubles))}; a "
            f"picture's name must be its own: rename or take away all but one"
        )


def _lie_in_as_many_splits(records: list[Record]) -> bool:
    return len({r.split for r in records if r.split}) == len(records)


def _double(records: list[Record]) -> str:
    names = " and ".join(dict.fromkeys(printable(r.name) for r in records))
    splits = " and ".join(dict.fromkeys(r.split for r in records if r.split))
    return f"{names} ({splits})" if splits else names


def _refuse_dangling(root: Path, records: list[Record]) -> None:
    lost = [path for r in records for path in (r.image, r.mask) if is_dangling(path)]
    if lost:
        shown = (printable(f"{path.name} -> {os.readlink(path)}") for path in lost)
        raise InputError(
            f"data: {root}: {len(lost)} pictures are links to what is not there: {some(shown)}; "
            f"mend the links, or take the pairs away"
        )


def _refuse_groups_across_splits(root: Path, records: list[Record]) -> None:
    homes: dict[str, set[str]] = {}
    for r in records:
        if r.split:
            homes.setdefault(r.group, set()).add(r.split)
    torn = sorted(g for g, splits in homes.items() if len(splits) > 1)
    if torn:
        where = " and ".join(sorted(homes[torn[0]]))
        raise InputError(
            f"data: {root}: {len(torn)} groups lie in two official splits: "
            f"{some(map(printable, torn))} ({printable(torn[0])} in {where}); "
            f"keep a patient's pictures together or drop the split"
        )
