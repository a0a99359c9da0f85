"""Pictures as people name them on the command line: files, folders, patterns; and their masks."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from lesionseg.data.index import MASK_SUFFIXES, PICTURES, pictures
from lesionseg.errors import InputError, some


def find_images(given: Iterable[str]) -> list[Path]:
    """The files that are meant, in the order given, each once.

    Args:
        given: files; folders, which stand for the pictures in them, not below them; patterns such
            as ``skin/**/*.jpg`` that the shell left alone, which stand for pictures too.

    Raises:
        InputError: one that leads to nothing.
    """
    found: dict[Path, Path] = {}
    for text in given:
        for path in _meant(text):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def find_masks(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The true mask of each image that has one below the folder.

    A mask is named like its image, or with ``_segmentation``, ``_mask`` and the like after it. Two
    images of one name in different folders would share it.

    Raises:
        InputError: no such folder, two masks of one name, or no mask for any image.
    """
    if not folder.is_dir():
        raise InputError(f"--masks: {folder}: no such folder")
    own = {path.resolve() for path in images}
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if _is_picture(path) and path.resolve() not in own:
            by_stem.setdefault(path.stem.lower(), []).append(path)
    found: dict[Path, Path] = {}
    for image in images:
        # The bare name last: images may lie in the same folder, under other names of their own.
        for suffix in (*MASK_SUFFIXES[1:], MASK_SUFFIXES[0]):
            named = by_stem.get(image.stem.lower() + suffix, [])
            if len(named) > 1:
                raise InputError(f"--masks: {image.name} has {len(named)} masks: {some(named)}")
            if named:
                found[image] = named[0]
                break
    if not found:
        raise InputError(
            f"--masks: none of {len(images)} images has a mask in {folder}, for example "
            f"{images[0].name}; a mask is named like its image, or with _segmentation or _mask "
            f"after it"
        )
    return found


def unique_stems(images: Iterable[Path]) -> list[str]:
    """A name for what is written of each image: its own without the ending; doubles are numbered.

    No two are the same, not even where a file system takes no notice of upper and lower case.
    """
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        name, n = image.stem, 1
        while name.lower() in taken:
            n += 1
            name = f"{image.stem}_{n}"
        taken.add(name.lower())
        names.append(name)
    return names


def _meant(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = pictures(path)
        if not found:
            raise InputError(
                f"{path}: no picture in this folder; '{path / '**' / '*'}' looks below it too"
            )
        return found
    if path.is_file():
        return [path]
    matched = sorted(map(Path, glob.glob(text, recursive=True)))
    found = [p for p in matched if _is_picture(p)]
    if not found:
        what = "no picture is meant by this" if glob.has_magic(text) else "no such file or folder"
        raise InputError(f"{text}: {what}")
    return found


def _is_picture(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in PICTURES and not hidden and path.is_file()
