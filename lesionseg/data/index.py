"""DatasetIndex: which image belongs to which mask, to which patient or lesion, to which split."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lesionseg.data.layouts import LAYOUTS
from lesionseg.data.pairs import MASK_SUFFIXES, PICTURES, SPLITS, Record, pair, pictures
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
    """All pairs of a data set, sorted by name."""

    root: Path
    layout: str
    records: tuple[Record, ...]

    @classmethod
    def read(cls, root: Path, layout: str = "auto") -> DatasetIndex:
        """Lists the pairs below ``root`` (a folder, or a CSV manifest).

        Raises InputError: nothing there, no known layout, images without mask, one name twice,
        a group in two official splits.
        """
        if not root.exists():
            raise InputError(f"data: no such folder: {root}; --data takes the data set's folder")
        name = _recognise(root) if layout == "auto" else layout
        if name not in LAYOUTS:
            raise InputError(f"data: unknown layout {name!r} ({nearest(name, LAYOUTS)})")
        records = sorted(LAYOUTS[name].read(root), key=lambda r: r.name)
        if not records:
            raise InputError(f"data: {root}: no pair of image and mask ({LAYOUTS[name].about})")
        _refuse_doubles(root, records)
        _refuse_groups_across_splits(root, records)
        return cls(root, name, tuple(records))

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
