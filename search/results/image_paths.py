"""Images on the command line: files, folders and patterns; and the masks that belong to them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lesionseg.data.pairs import IMAGE_SUFFIXES, MASK_SUFFIXES, list_images
from lesionseg.errors import InputError, format_some
from lesionseg.runtime.files import file_stem


def find_images(arguments: Iterable[str]) -> list[Path]:
    """Return the images that the arguments name, in their order and without repetitions.

    Args:
        arguments: files; folders, for the images directly in them; patterns such as
            ``skin/**/*.jpg``.

    Raises:
        InputError: an argument names no image.
    """
    images: dict[Path, Path] = {}
    for argument in arguments:
        for path in _expand(argument):
            images.setdefault(path.resolve(), path)
    return list(images.values())


def find_masks(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the true mask of each image that has one in the folder or below it.

    A mask has the name of its image, alone or followed by a suffix such as ``_segmentation`` or
    ``_mask``. Images with the same name in different folders share a mask.

    Raises:
        InputError: there is no such folder, an image has two masks, or no image has one.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--masks: {folder}: no such folder")
    resolved = {path.resolve() for path in images}
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if _is_picture(path) and path.resolve() not in resolved:
            by_stem.setdefault(path.stem.lower(), []).append(path)
    masks: dict[Path, Path] = {}
    for image in images:
        # The plain name comes last: other images may be in the same folder.
        stems = (image.stem.lower() + suffix for suffix in (*MASK_SUFFIXES[1:], MASK_SUFFIXES[0]))
        candidates = next((by_stem[stem] for stem in stems if stem in by_stem), [])
        if len(candidates) > 1:
            raise InputError(
                f"--masks: {image.name} has {len(candidates)} masks: {format_some(candidates)}"
            )
        if candidates:
            masks[image] = candidates[0]
    if not masks:
        raise InputError(
            f"--masks: none of {len(images)} images has a mask in {folder}, for example "
            f"{images[0].name}; a mask has the name of its image, alone or followed by "
            f"_segmentation or _mask"
        )
    return masks


def unique_stems(images: Iterable[Path]) -> list[str]:
    """Return a file name for each image: its own without the ending, numbered to be unique.

    The names are also unique on file systems that ignore case; see ``file_stem``.
    """
    names: dict[str, str] = {}  # by their lower case
    repetitions: Counter[str] = Counter()
    for image in images:
        stem = name = file_stem(image.stem)
        while name.lower() in names:
            repetitions[stem.lower()] += 1
            name = f"{stem}_{repetitions[stem.lower()] + 1}"
        names[name.lower()] = name
    return list(names.values())


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    if os.path.isdir(path):  # also False for invalid names
        if images := list_images(path):
            return images
        raise InputError(
            f"{path}: no image in this folder; '{path / '**' / '*'}' includes its subfolders"
        )
    if os.path.isfile(path):
        return [path]
    matches = sorted(map(Path, glob.glob(argument, recursive=True)))
    if images := [match for match in matches if _is_picture(match)]:
        return images
    problem = "matches no image" if glob.has_magic(argument) else "no such file or folder"
    raise InputError(f"{argument}: {problem}")


def _is_picture(path: Path) -> bool:
    is_image = path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    return is_image and not path.name.startswith(".")
