"""LAYOUTS: the supported folder layouts. No image is opened here."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.data.pairs import SPLITS, Record, find_folder, match_pairs
from lesionseg.errors import InputError


@dataclass(frozen=True)
class Layout:
    """One row of LAYOUTS.

    Attributes:
        read: returns the records of a path, none if it has another layout.
        description: one line for help and docs.
    """

    read: Callable[[Path], Iterable[Record]]
    description: str


@contextmanager
def _open_csv(path: Path) -> Iterator[csv.DictReader[str]]:
    """Read a table, separated by tabs if there is one in its first line, else by commas."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            yield csv.DictReader(file, delimiter=delimiter)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: {path}: not a readable CSV file: {error}") from None


# --- ISIC challenges ---------------------------------------------------------------------------

#: For each challenge, the folders of images and masks by split, as in its archives.
_CHALLENGES: Mapping[str, Mapping[str, tuple[str, str]]] = {
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


def _challenge_layout(name: str) -> Layout:
    folders = _CHALLENGES[name]

    def read(root: Path) -> Iterator[Record]:
        found = [(s, find_folder(root, images), masks) for s, (images, masks) in folders.items()]
        present = [(split, images, masks) for split, images, masks in found if images]
        for split, images, mask_name in present:
            masks = find_folder(root, mask_name)
            if masks is None:
                raise InputError(f"data: {root}: has {images.name}, but not its {mask_name}")
            # The training images alone are not an official split.
            yield from match_pairs(images, masks, split if len(present) > 1 else None)

    return Layout(read, " and ".join(folders["train"]))


# --- HAM10000 ----------------------------------------------------------------------------------

_HAM_MASKS = "HAM10000_segmentations_lesion_tschandl"


def _read_ham(root: Path) -> Iterator[Record]:
    parts = (find_folder(root, f"HAM10000_images_part_{part}") for part in (1, 2))
    folders = [folder for folder in parts if folder]
    if not folders:
        return
    masks, lesions = find_folder(root, _HAM_MASKS), _read_ham_lesions(root)
    if masks is None:
        raise InputError(f"data: {root}: has HAM10000_images_part_1, but not {_HAM_MASKS}")
    for folder in folders:
        for record in match_pairs(folder, masks):
            if record.name not in lesions:
                raise InputError(f"data: {root}: HAM10000_metadata has no row of {record.name}")
            yield replace(record, group=lesions[record.name])


def _read_ham_lesions(root: Path) -> dict[str, str]:
    """Return the lesion of each image; several images may show one lesion."""
    names = [f"HAM10000_metadata{end}" for end in ("", ".csv", ".tab", ".tsv")]
    path = next((root / n for n in names if (root / n).is_file()), None)
    if path is None:
        raise InputError(
            f"data: {root}: HAM10000_metadata is missing; its column lesion_id tells which images "
            f"show one lesion"
        )
    try:
        with _open_csv(path) as rows:
            return {
                row["image_id"]: (row["lesion_id"] or "").strip() or row["image_id"] for row in rows
            }
    except KeyError as error:
        raise InputError(
            f"data: {path}: needs the columns lesion_id and image_id, lacks {error}"
        ) from None


# --- PH2 ---------------------------------------------------------------------------------------


def _read_ph2(root: Path) -> Iterator[Record]:
    folder = find_folder(root, "PH2 Dataset images") or root
    for case in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not re.fullmatch(r"IMD\d+", case.name, re.IGNORECASE):
            continue
        images = find_folder(case, f"{case.name}_Dermoscopic_Image")
        masks = find_folder(case, f"{case.name}_lesion")
        if images is None or masks is None:
            raise InputError(
                f"data: {case}: needs {case.name}_Dermoscopic_Image and {case.name}_lesion"
            )
        yield from match_pairs(images, masks)


# --- images/ and masks/ ------------------------------------------------------------------------


def _read_folders(root: Path) -> Iterator[Record]:
    for split in (None, *SPLITS):
        base = root if split is None else find_folder(root, split)
        images, masks = (find_folder(base, n) if base else None for n in ("images", "masks"))
        if images and masks:
            yield from match_pairs(images, masks, split)


# --- CSV manifest ------------------------------------------------------------------------------


def _read_manifest(root: Path) -> list[Record]:
    path = root if root.suffix.lower() == ".csv" else root / "manifest.csv"
    if not path.is_file():
        return []
    with _open_csv(path) as rows:
        columns = rows.fieldnames or []
        if not {"image", "mask"} <= set(columns):
            raise InputError(
                f"data: {path}: needs the columns image and mask (group, split and set "
                f"may follow), got {', '.join(columns) or 'none'}"
            )
        records = [_manifest_record(path, rows.line_num, row) for row in rows]
    if not records:
        raise InputError(f"data: {path}: has no rows below its header")
    return records


def _manifest_record(path: Path, line: int, row: Mapping[str, str | None]) -> Record:
    files = {}
    for column in ("image", "mask"):
        files[column] = path.parent / (row[column] or "")
        if not files[column].is_file():
            raise InputError(f"data: {path}:{line}: {column}: no such file: {row[column]!r}")
    # Without stripping, spaces around a patient's number would make two patients of one.
    group, split, dataset = ((row.get(key) or "").strip() for key in ("group", "split", "set"))
    if split and split.lower() not in SPLITS:
        raise InputError(
            f"data: {path}:{line}: split must be train, val or test, got {split.lower()!r}"
        )
    name = files["image"].stem
    return Record(
        name, files["image"], files["mask"], group or name, split.lower() or None, dataset
    )


LAYOUTS: Mapping[str, Layout] = {
    "csv": Layout(
        _read_manifest,
        "a .csv file, or manifest.csv in the folder, with columns image, mask, group, split, set",
    ),
    **{name: _challenge_layout(name) for name in _CHALLENGES},
    "ham10000": Layout(
        _read_ham,
        f"HAM10000_images_part_1 and _2, {_HAM_MASKS}, HAM10000_metadata",
    ),
    "ph2": Layout(
        _read_ph2,
        "PH2 Dataset images/IMDxxx/IMDxxx_Dermoscopic_Image and IMDxxx_lesion",
    ),
    "folders": Layout(
        _read_folders,
        "images/ and masks/, also below train/, val/ and test/",
    ),
}
