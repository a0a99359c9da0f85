"""DatasetIndex: which image belongs to which mask, to which patient or lesion, to which split.

LAYOUTS is the table of the folder layouts that are understood; a row finds out whether a path
is of its kind and lists the pairs. No picture is opened here.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import InputError, nearest, some

SPLITS = ("train", "val", "test")
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

#: What a mask's name may carry after its image's name, in lower case.
MASK_SUFFIXES = ("", "_segmentation", "_mask", "_lesion", "_gt", "_label", "-mask", "_seg")


@dataclass(frozen=True)
class Record:
    """One pair. ``group`` is the patient or lesion; ``split`` the official one, where there is."""

    name: str
    image: Path
    mask: Path
    group: str
    split: str | None = None


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


@dataclass(frozen=True)
class Layout:
    """A row of LAYOUTS: is this path of its kind; its records; one line for people."""

    fits: Callable[[Path], bool]
    read: Callable[[Path], Iterable[Record]]
    about: str


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted by name, but for hidden ones such as ``._x.jpg``."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in PICTURES and not p.name.startswith(".") and p.is_file()
    )


def pair(images: Path, masks: Path, split: str | None = None) -> Iterator[Record]:
    """Matches the images of one folder with the masks of another, by name and without case.

    InputError where an image has no mask or two images share a name.
    """
    by_stem = {p.stem.lower(): p for p in pictures(masks)}
    found: list[Record] = []
    missing: list[str] = []
    for image in pictures(images):
        stem = image.stem.lower()
        if stem.endswith("_superpixels"):  # ISIC 2017 keeps these beside its images
            continue
        mask = next((by_stem[stem + s] for s in MASK_SUFFIXES if stem + s in by_stem), None)
        if mask is None:
            missing.append(image.name)
        else:
            found.append(Record(image.stem, image, mask, image.stem, split))
    if missing and found:
        raise InputError(
            f"data: {images}: {len(missing)} of {len(missing) + len(found)} images have no mask "
            f"in {masks}: {some(missing)}; add the masks or take the images away"
        )
    if missing:
        raise InputError(
            f"data: {images}: none of {len(missing)} images has a mask in {masks}, for example "
            f"{missing[0]}; a mask is named like its image, or with _segmentation or _mask after it"
        )
    yield from found


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


def _child(root: Path, name: str) -> Path | None:
    """The folder of that name, without regard to case."""
    if not root.is_dir():
        return None
    return next((p for p in root.iterdir() if p.name.lower() == name.lower() and p.is_dir()), None)


# --- ISIC 2018 ---------------------------------------------------------------------------------

_ISIC = {"train": "Training", "val": "Validation", "test": "Test"}


def _isic_folders(root: Path) -> Iterator[tuple[str, Path, Path | None]]:
    for split, word in _ISIC.items():
        images = _child(root, f"ISIC2018_Task1-2_{word}_Input")
        if images:
            yield split, images, _child(root, f"ISIC2018_Task1_{word}_GroundTruth")


def _read_isic(root: Path) -> Iterator[Record]:
    folders = list(_isic_folders(root))
    # Training images alone are no split: it is ours to make then.
    official = len(folders) > 1
    for split, images, masks in folders:
        if masks is None:
            wanted = f"ISIC2018_Task1_{_ISIC[split]}_GroundTruth"
            raise InputError(f"data: {root}: {images.name} is there, but its {wanted} is missing")
        yield from pair(images, masks, split if official else None)


# --- PH2 ---------------------------------------------------------------------------------------


def _ph2_cases(root: Path) -> list[Path]:
    folder = _child(root, "PH2 Dataset images") or root
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"IMD\d+", p.name, re.IGNORECASE))


def _read_ph2(root: Path) -> Iterator[Record]:
    for case in _ph2_cases(root):
        images = _child(case, f"{case.name}_Dermoscopic_Image")
        masks = _child(case, f"{case.name}_lesion")
        if images is None or masks is None:
            raise InputError(
                f"data: {case}: needs {case.name}_Dermoscopic_Image and {case.name}_lesion"
            )
        yield from pair(images, masks)


# --- images/ and masks/ ------------------------------------------------------------------------


def _folder_pairs(root: Path) -> Iterator[tuple[str | None, Path, Path]]:
    for split in (None, *SPLITS):
        base = root if split is None else _child(root, split)
        images, masks = (_child(base, n) if base else None for n in ("images", "masks"))
        if images and masks:
            yield split, images, masks


def _read_folders(root: Path) -> Iterator[Record]:
    for split, images, masks in _folder_pairs(root):
        yield from pair(images, masks, split)


# --- CSV manifest ------------------------------------------------------------------------------


def _manifest(root: Path) -> Path:
    return root if root.suffix.lower() == ".csv" else root / "manifest.csv"


def _read_csv(root: Path) -> Iterator[Record]:
    path = _manifest(root)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            for column in ("image", "mask"):
                if column not in columns:
                    raise InputError(
                        f"data: {path}: needs the columns image and mask (group and split may "
                        f"follow), got {', '.join(columns) or 'none'}"
                    )
            for row in rows:
                yield _csv_record(path, rows.line_num, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: {path}: not a readable CSV file: {error}") from None


def _csv_record(path: Path, line: int, row: Mapping[str, str | None]) -> Record:
    files = {}
    for column in ("image", "mask"):
        files[column] = path.parent / (row[column] or "")
        if not files[column].is_file():
            raise InputError(f"data: {path}:{line}: {column}: no such file: {row[column]!r}")
    split = (row.get("split") or "").strip().lower() or None
    if split not in (None, *SPLITS):
        raise InputError(f"data: {path}:{line}: split must be train, val or test, got {split!r}")
    name = files["image"].stem
    return Record(name, files["image"], files["mask"], row.get("group") or name, split)


LAYOUTS: Mapping[str, Layout] = {
    "csv": Layout(
        lambda root: _manifest(root).is_file(),
        _read_csv,
        "a .csv file, or manifest.csv in the folder, with columns image, mask, group, split",
    ),
    "isic2018": Layout(
        lambda root: any(True for _ in _isic_folders(root)),
        _read_isic,
        "ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth",
    ),
    "ph2": Layout(
        lambda root: bool(_ph2_cases(root)),
        _read_ph2,
        "PH2 Dataset images/IMDxxx/IMDxxx_Dermoscopic_Image and IMDxxx_lesion",
    ),
    "folders": Layout(
        lambda root: any(True for _ in _folder_pairs(root)),
        _read_folders,
        "images/ and masks/, also below train/, val/ and test/",
    ),
}
