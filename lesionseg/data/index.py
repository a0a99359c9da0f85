"""DatasetIndex: which image belongs to which mask, to which patient or lesion, to which split."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lesionseg.data.layouts import LAYOUTS
from lesionseg.data.pairs import MASK_SUFFIXES, PICTURES, SPLITS, Record, pair, pictures
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

    Of several sets together, root is the folder that all of them lie in.
    """

    root: Path
    layout: str
    records: tuple[Record, ...]

    @classmethod
    def read(cls, roots: Roots, layout: str = "auto", *, torn: bool = False) -> DatasetIndex:
        """Lists the pairs below a folder, or of a CSV manifest, or of several of them together.

        Several are the same index in whatever order (``lesionseg.data.sets.merge``).
        torn: of one set, take groups that lie in two official splits as they are.
        Raises InputError: nothing there, no known layout, images without mask, one name twice,
        a group in two official splits of one set, a set that is given twice or overlaps another.
        """
        if isinstance(roots, tuple) and len(roots) != 1:
            return cls._together(roots, layout)
        (root,) = each_root(roots)
        if not root.exists():
            raise InputError(f"data: no such folder: {root}; --data takes the data set's folder")
        name = _recognise(root) if layout == "auto" else layout
        if name not in LAYOUTS:
            raise InputError(f"data: unknown layout {name!r} ({nearest(name, LAYOUTS)})")
        records = sorted(LAYOUTS[name].read(root), key=lambda r: r.name)
        if not records:
            raise InputError(f"data: {root}: no pair of image and mask ({LAYOUTS[name].about})")
        _refuse_doubles(root, records)
        if not torn:
            _refuse_groups_across_splits(root, records)
        return cls(root, name, tuple(records))

    @classmethod
    def _together(cls, roots: tuple[Path, ...], layout: str) -> DatasetIndex:
        named = sorted(zip(labels(roots), roots, strict=True))
        read = {label: cls.read(root, layout) for label, root in named}
        records = sorted(
            merge({label: index.records for label, index in read.items()}), key=lambda r: r.name
        )
        top = Path(os.path.commonpath([root.resolve() for root in roots]))
        _refuse_doubles(top, records)
        layouts = dict.fromkeys(index.layout for index in read.values())
        return cls(top, " + ".join(layouts), tuple(records))

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


def _refuse_doubles(root: Path, records: list[Record]) -> None:
    doubles = [n for n, k in Counter(r.name.lower() for r in records).items() if k > 1]
    if doubles:
        raise InputError(f"data: {root}: {len(doubles)} names stand twice: {some(doubles)}")


def _refuse_groups_across_splits(root: Path, records: list[Record]) -> None:
    homes: dict[str, set[str]] = {}
    for r in records:
        if r.split:
            homes.setdefault(r.group, set()).add(r.split)
    torn = sorted(g for g, splits in homes.items() if len(splits) > 1)
    if torn:
        where = " and ".join(sorted(homes[torn[0]]))
        raise InputError(
            f"data: {root}: {len(torn)} groups lie in two official splits: {some(torn)} "
            f"({torn[0]} in {where}); keep a patient's pictures together or drop the split"
        )
