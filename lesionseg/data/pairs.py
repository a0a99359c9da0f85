"""Pairs of an image and its mask, matched by their names. No picture is opened here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


def printable(text: str) -> str:
    """The text as a line that any terminal and any font takes.

    Names of files may hold line breaks, and bytes that are no characters: these are escaped.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def looking_into(folder: Path) -> Iterator[None]:
    """InputError where the system refuses to show what is in a folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"data: {error.filename or folder}: cannot be read: {error.strerror or error}; make it "
            f"readable for this user"
        ) from error


def is_dangling(path: Path) -> bool:
    """Whether it is a link to what is not there."""
    return path.is_symlink() and not path.exists()


def pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted by name, but for hidden ones such as ``._x.jpg``.

    Links to what is not there are among them: whoever reads them says so. InputError where the
    folder cannot be read.
    """
    with looking_into(folder):
        return sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in PICTURES
            and not p.name.startswith(".")
            and (p.is_file() or is_dangling(p))
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
            missing.append(printable(image.name))
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


def without_image(records: Iterable[Record]) -> list[Path]:
    """The masks beside those of the records whose name fits none of their images."""
    known: dict[Path, set[str]] = {}
    for r in records:
        stem = r.image.stem.lower()
        known.setdefault(r.mask.parent, set()).update(stem + s for s in MASK_SUFFIXES)
    return [
        mask
        for folder, names in sorted(known.items())
        for mask in pictures(folder)
        if mask.stem.lower() not in names
    ]


def child(root: Path, name: str) -> Path | None:
    """The folder of that name, without regard to case. InputError where root cannot be read."""
    with looking_into(root):
        if not root.is_dir():
            return None
        format_step = (p for p in root.iterdir() if p.name.lower() == name.lower())
        return next((p for p in format_step if p.is_dir()), None)
