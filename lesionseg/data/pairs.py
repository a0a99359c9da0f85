"""Pairs of an image and its mask, matched by their names. No picture is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import InputError, some

SPLITS = ("train", "val", "test")
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

#: What a mask's name may carry after its image's name, in lower case.
MASK_SUFFIXES = ("", "_segmentation", "_mask", "_lesion", "_gt", "_label", "-mask", "_seg")


@dataclass(frozen=True)
class Record:
    """One pair. ``group`` is the patient or lesion; ``split`` the official one, where there is.

    ``set``: the data set it is counted with, "" for the only one. ``home``: which of several data
    sets that are used together it was read from, "" for the only one.
    """

    name: str
    image: Path
    mask: Path
    group: str
    split: str | None = None
    set: str = ""
    home: str = ""


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


def child(root: Path, name: str) -> Path | None:
    """The folder of that name, without regard to case."""
    if not root.is_dir():
        return None
    return next((p for p in root.iterdir() if p.name.lower() == name.lower() and p.is_dir()), None)
