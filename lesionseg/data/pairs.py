"""Pairs of an image and its mask, matched by file name. No image is opened here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import InputError, format_some

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

#: What may follow the image's name in the name of its mask, in lower case.
MASK_SUFFIXES = ("", "_segmentation", "_mask", "_lesion", "_gt", "_label", "-mask", "_seg")


@dataclass(frozen=True)
class Record:
    """One pair of image and mask.

    Attributes:
        name: unique in the index.
        image: the image file.
        mask: the mask file.
        group: the patient or lesion.
        split: the official split, if there is one.
        dataset: the data set that the pair is reported with; "" if there is only one.
        source: the label of the folder or manifest that the pair was read from, if several data
            sets were merged; else "".
        is_inverted: whether the mask shows the skin instead of the lesion.
        mask_orientation: the EXIF orientation that the mask is stored in, where that is not the one
            of its file; see ``pair_io``.
    """

    name: str
    image: Path
    mask: Path
    group: str
    split: str | None = None
    dataset: str = ""
    source: str = ""
    is_inverted: bool = False
    mask_orientation: int | None = None


def escape_unprintable(text: str) -> str:
    """Escape line breaks and other unprintable characters, which file names may contain."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def unreadable_as_input_error(folder: Path) -> Iterator[None]:
    """Raise InputError for an OSError while a folder is read."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"data: {error.filename or folder}: cannot be read: {error.strerror or error}; make it "
            f"readable for this user"
        ) from error


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden files.

    Links to missing files are included, so that they can be reported.

    Raises:
        InputError: the folder cannot be read.
    """
    with unreadable_as_input_error(folder):
        return sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
        )


def match_pairs(images: Path, masks: Path, split: str | None = None) -> Iterator[Record]:
    """Match the images of a folder with the masks of another one by name, ignoring case.

    Raises:
        InputError: an image has no mask, or a folder cannot be read.
    """
    by_stem = {p.stem.lower(): p for p in list_images(masks)}
    records: list[Record] = []
    missing: list[str] = []
    for image in list_images(images):
        stem = image.stem.lower()
        if stem.endswith("_superpixels"):  # in ISIC 2017's image folders
            continue
        mask = next((by_stem[stem + s] for s in MASK_SUFFIXES if stem + s in by_stem), None)
        if mask is None:
            missing.append(escape_unprintable(image.name))
        else:
            records.append(Record(image.stem, image, mask, image.stem, split))
    if missing and records:
        raise InputError(
            f"data: {images}: {len(missing)} of {len(missing) + len(records)} images have no mask "
            f"in {masks}: {format_some(missing)}; add the masks or remove the images"
        )
    if missing:
        raise InputError(
            f"data: {images}: none of {len(missing)} images has a mask in {masks}, for example "
            f"{missing[0]}; a mask is named like its image, or with _segmentation or _mask after it"
        )
    yield from records


def find_masks_without_image(records: Iterable[Record]) -> list[Path]:
    """Return the files in the records' mask folders that match no image."""
    stems: dict[Path, set[str]] = {}
    for r in records:
        stem = r.image.stem.lower()
        stems.setdefault(r.mask.parent, set()).update(stem + s for s in MASK_SUFFIXES)
    return [
        mask
        for folder, names in sorted(stems.items())
        for mask in list_images(folder)
        if mask.stem.lower() not in names
    ]


def find_folder(root: Path, name: str) -> Path | None:
    """Return the subfolder of that name, ignoring case."""
    if not root.is_dir():
        return None
    return next((p for p in root.iterdir() if p.name.lower() == name.lower() and p.is_dir()), None)
