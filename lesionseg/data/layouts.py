"""LAYOUTS: the table of the folder layouts that are understood.

A row finds out whether a path is of its kind and lists the pairs. No picture is opened here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.data.pairs import SPLITS, Record, child, pair
from lesionseg.errors import InputError


@dataclass(frozen=True)
class Layout:
    """A row of LAYOUTS: is this path of its kind; its records; one line for people."""

    fits: Callable[[Path], bool]
    read: Callable[[Path], Iterable[Record]]
    about: str


# --- the ISIC challenges -----------------------------------------------------------------------

#: For each challenge the folders of images and of masks by split, as its archives unpack.
CHALLENGES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "isic2018": {
        split: (f"ISIC2018_Task1-2_{word}_Input", f"ISIC2018_Task1_{word}_GroundTruth")
        for split, word in {"train": "Training", "val": "Validation", "test": "Test"}.items()
    },
    "isic2017": {
        split: (f"ISIC-2017_{word}_Data", f"ISIC-2017_{word}_Part1_GroundTruth")
        for split, word in {"train": "Training", "val": "Validation", "test": "Test_v2"}.items()
    },
    "isic2016": {
        split: (f"ISBI2016_ISIC_Part1_{word}_Data", f"ISBI2016_ISIC_Part1_{word}_GroundTruth")
        for split, word in {"train": "Training", "test": "Test"}.items()
    },
}


def _challenge(name: str) -> Layout:
    folders = CHALLENGES[name]

    def fits(root: Path) -> bool:
        return any(child(root, images) for images, _ in folders.values())

    def read(root: Path) -> Iterator[Record]:
        found = [(split, child(root, images), masks) for split, (images, masks) in folders.items()]
        there = [(split, images, masks) for split, images, masks in found if images]
        for split, images, masks in there:
            home = child(root, masks)
            if home is None:
                raise InputError(
                    f"data: {root}: {images.name} is there, but its {masks} is missing"
                )
            # Training images alone are no split: it is ours to make then.
            yield from pair(images, home, split if len(there) > 1 else None)

    return Layout(fits, read, " and ".join(folders["train"]))


# --- HAM10000 ----------------------------------------------------------------------------------

_HAM_MASKS = "HAM10000_segmentations_lesion_tschandl"


def _ham_images(root: Path) -> list[Path]:
    found = (child(root, f"HAM10000_images_part_{part}") for part in (1, 2))
    return [folder for folder in found if folder]


def _read_ham(root: Path) -> Iterator[Record]:
    masks, lesions = child(root, _HAM_MASKS), _ham_lesions(root)
    if masks is None:
        raise InputError(f"data: {root}: HAM10000_images_part_1 is there, but {_HAM_MASKS} is not")
    for folder in _ham_images(root):
        for record in pair(folder, masks):
            if record.name not in lesions:
                raise InputError(f"data: {root}: HAM10000_metadata has no row of {record.name}")
            yield replace(record, group=lesions[record.name])


def _ham_lesions(root: Path) -> dict[str, str]:
    """The lesion of each image: several images may show one, and must stay together."""
    names = [f"HAM10000_metadata{end}" for end in ("", ".csv", ".tab", ".tsv")]
    path = next((root / n for n in names if (root / n).is_file()), None)
    if path is None:
        raise InputError(
            f"data: {root}: HAM10000_metadata is missing; its column lesion_id says which images "
            f"show one lesion"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter="\t" if "\t" in head else ",")
            return {
                row["image_id"]: (row["lesion_id"] or "").strip() or row["image_id"] for row in rows
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: {path}: not a readable CSV file: {error}") from None
    except KeyError as error:
        raise InputError(
            f"data: {path}: needs the columns lesion_id and image_id, lacks {error}"
        ) from None


# --- PH2 ---------------------------------------------------------------------------------------


def _ph2_cases(root: Path) -> list[Path]:
    folder = child(root, "PH2 Dataset images") or root
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"IMD\d+", p.name, re.IGNORECASE))


def _read_ph2(root: Path) -> Iterator[Record]:
    for case in _ph2_cases(root):
        images = child(case, f"{case.name}_Dermoscopic_Image")
        masks = child(case, f"{case.name}_lesion")
        if images is None or masks is None:
            raise InputError(
                f"data: {case}: needs {case.name}_Dermoscopic_Image and {case.name}_lesion"
            )
        yield from pair(images, masks)


# --- images/ and masks/ ------------------------------------------------------------------------


def _folder_pairs(root: Path) -> Iterator[tuple[str | None, Path, Path]]:
    for split in (None, *SPLITS):
        base = root if split is None else child(root, split)
        images, masks = (child(base, n) if base else None for n in ("images", "masks"))
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
                        f"data: {path}: needs the columns image and mask (group, split and set "
                        f"may follow), got {', '.join(columns) or 'none'}"
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
    # Blanks around a patient's number would make two patients of one.
    group, origin = (row.get("group") or "").strip() or name, (row.get("set") or "").strip()
    return Record(name, files["image"], files["mask"], group, split, origin)


LAYOUTS: Mapping[str, Layout] = {
    "csv": Layout(
        lambda root: _manifest(root).is_file(),
        _read_csv,
        "a .csv file, or manifest.csv in the folder, with columns image, mask, group, split, set",
    ),
    **{name: _challenge(name) for name in CHALLENGES},
    "ham10000": Layout(
        lambda root: bool(_ham_images(root)),
        _read_ham,
        f"HAM10000_images_part_1 and _2, {_HAM_MASKS}, HAM10000_metadata",
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
