"""All images and masks at one size, as memory-mapped uint8 arrays.

A cache is a folder ``<root>/<key>/``. The key is a hash of the file names, sizes and times and of
the image size. A cache is built in a temporary folder and renamed when complete; processes that
need the same cache wait for the one that builds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from PIL import Image

from lesionseg.data.image_io import (
    Pixels,
    read_binary_mask,
    read_image_and_size,
    resize_square,
)
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, format_some
from lesionseg.runtime.files import atomic_folder

#: Part of the key. To be increased when the contents of a cache change.
VERSION = 4

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


def default_root() -> Path:
    """Return ``$LESIONSEARCH_CACHE``, or ``lesionsearch`` in the user's cache folder."""
    configured = os.environ.get("LESIONSEARCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(configured) if configured else Path(base) / "lesionsearch"


@dataclass
class Cache:
    """A complete cache, compared and pickled by its path.

    Attributes:
        images: RGB, memory-mapped, uint8 [N, S, S, 3].
        masks: memory-mapped, uint8 [N, S, S], 1 on the lesion.
        names: the names of the records.
        areas: the lesion's share of each mask at its original size, [N] in [0, 1].
        shapes: original height and width of each image in pixels.
        digests: equal for images with equal cached pixels.
        thresholded: names of the masks that were not binary.
    """

    path: Path

    def __post_init__(self) -> None:
        self.images: Pixels = np.load(self.path / "images.npy", mmap_mode="r")
        self.masks: Pixels = np.load(self.path / "masks.npy", mmap_mode="r")
        meta = json.loads((self.path / "meta.json").read_text())
        self.names: list[str] = meta["names"]
        self.areas = np.asarray(meta["areas"], dtype=np.float64)
        self.shapes = [(int(height), int(width)) for height, width in meta["shapes"]]
        self.digests: list[str] = meta["digests"]
        self.thresholded: list[str] = meta["thresholded"]

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        return (Cache, (self.path,))


def build_cache(
    index: DatasetIndex,
    image_size: int,
    root: Path | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Cache:
    """Return the cache of a data set at one size in pixels; build it if there is none.

    ``root`` is the parent folder of all caches, ``default_root()`` by default. ``on_progress`` is
    called with the number of processed pairs and of all pairs.

    Raises:
        InputError: pairs cannot be used (all are checked before), or the cache cannot be written.
    """
    root = root or default_root()
    path = root / _key(index, image_size)
    if path.is_dir():
        return Cache(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_dir():  # another process may have built it in the meantime
                _build(index, image_size, path, on_progress)
    except OSError as error:
        raise InputError(
            f"cache: {root}: cannot be written: {error.strerror or error}; make room, or set "
            f"LESIONSEARCH_CACHE to another folder"
        ) from error
    return Cache(path)


class Pair(NamedTuple):
    """An image uint8 [S, S, 3] and its mask uint8 [S, S] in {0, 1}, at the size of a cache.

    ``area`` is the lesion's share and ``shape`` the height and width of the original.
    """

    image: Pixels
    mask: Pixels
    area: float
    thresholded: bool
    shape: tuple[int, int]


def read_pair(record: Record, size: int) -> Pair:
    """Read a pair at ``size`` x ``size`` pixels.

    Raises:
        InputError: a file is not an image, or image and mask differ in size.
    """
    image, shape = read_image_and_size(record.image, size)
    mask, area, thresholded = read_binary_mask(record.mask)
    check_same_size(record.mask, shape, (mask.height, mask.width))
    soft = mask.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    small = (np.asarray(soft) >= 128).astype(np.uint8)
    return Pair(resize_square(image, size), small, area, thresholded, shape)


def check_same_size(path: Path, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Raise InputError if the height and width of image and mask differ. path: of the mask."""
    if image != mask:
        raise InputError(
            f"{path}: the mask has {mask[1]}x{mask[0]} pixels, "
            f"its image {image[1]}x{image[0]}; they must be of one size"
        )


def _key(index: DatasetIndex, image_size: int) -> str:
    digest = hashlib.sha256(f"{VERSION}|{image_size}".encode())
    for r in index.records:
        files = [(str(p.resolve()), p.stat()) for p in (r.image, r.mask)]
        digest.update(repr([r.name] + [(p, s.st_size, s.st_mtime_ns) for p, s in files]).encode())
    return f"{digest.hexdigest()[:16]}-{image_size}"


def _build(index: DatasetIndex, size: int, path: Path, on_progress: Progress) -> None:
    with atomic_folder(path) as folder:
        meta = _write_arrays(index.records, size, folder, on_progress)
        (folder / "meta.json").write_text(json.dumps(meta))


def _write_arrays(
    records: Sequence[Record], size: int, folder: Path, on_progress: Progress
) -> dict[str, Any]:
    """Write ``images.npy`` and ``masks.npy``; return the contents of ``meta.json``."""
    n = len(records)
    images = _allocate(folder / "images.npy", (n, size, size, 3))
    masks = _allocate(folder / "masks.npy", (n, size, size))

    def store(i: int) -> tuple[float, tuple[int, int], str, str | None] | InputError:
        try:
            images[i], masks[i], area, thresholded, shape = read_pair(records[i], size)
        except InputError as error:
            return error
        digest = hashlib.blake2b(images[i].tobytes(), digest_size=8).hexdigest()
        return area, shape, digest, records[i].name if thresholded else None

    rows = map_parallel(store, range(n), on_progress)
    problems = [str(row) for row in rows if isinstance(row, InputError)]
    if problems:
        count = f"; {len(problems)} of {n} pairs cannot be used" if len(problems) > 1 else ""
        raise InputError(f"data: {format_some(problems, limit=1)}{count}")
    images.flush()
    masks.flush()
    areas, shapes, digests, thresholded = zip(*rows, strict=True)
    names = [r.name for r in records]
    meta = {"names": names, "areas": areas, "shapes": shapes, "digests": digests}
    return meta | {"thresholded": [name for name in thresholded if name]}


def map_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    on_progress: Progress = lambda done, total: None,
) -> list[Result]:
    """Return the results of a function that reads images, called in one thread per core."""
    results = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # PIL decodes without the GIL
        for result in pool.map(function, items):
            results.append(result)
            on_progress(len(results), len(items))
    return results


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    array: np.memmap[Any, np.dtype[np.uint8]] = open_memmap(
        path, mode="w+", dtype=np.uint8, shape=shape
    )
    # On a full disk, writing to a mapped sparse file kills the process (SIGBUS). Allocating the
    # blocks here raises OSError instead.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
