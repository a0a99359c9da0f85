"""All images and masks at one size, as memory-mapped uint8 arrays.

A cache is a folder ``<root>/<key>/``. The key is a hash of the file names, sizes and times and of
the image size. A cache is built in a temporary folder and renamed when complete; processes that
need the same cache wait for the one that builds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from lesionseg.data.image_io import (
    Pixels,
    draft_size,
    read_binary_mask,
    read_image_and_size,
    read_size,
    resize_square,
)
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, format_some
from lesionseg.runtime.malloc import freed_memory_retained

#: Part of the key. To be increased when the contents of a cache change.
VERSION = 4

Progress = Callable[[int, int], None]


def default_root() -> Path:
    """Return ``$LESIONSEARCH_CACHE``, or ``lesionsearch`` in the user's cache folder."""
    configured = os.environ.get("LESIONSEARCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(configured) if configured else Path(base) / "lesionsearch"


@dataclass(frozen=True)
class Cache:
    """A complete cache. Arrays are mapped on first use; pickling keeps only the path."""

    path: Path

    @cached_property
    def images(self) -> Pixels:
        """RGB images, uint8 [N, S, S, 3]."""
        images: Pixels = np.load(self.path / "images.npy", mmap_mode="r")
        return images

    @cached_property
    def masks(self) -> Pixels:
        """Masks, uint8 [N, S, S], 1 on the lesion."""
        masks: Pixels = np.load(self.path / "masks.npy", mmap_mode="r")
        return masks

    @cached_property
    def meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.path / "meta.json").read_text())
        return meta

    @property
    def names(self) -> list[str]:
        return list(self.meta["names"])

    @property
    def areas(self) -> NDArray[np.float64]:
        """The lesion's share of each mask at its original size, [N] in [0, 1]."""
        return np.asarray(self.meta["areas"], dtype=np.float64)

    @property
    def thresholded(self) -> list[str]:
        """Names of the masks that were not binary."""
        return list(self.meta["thresholded"])

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Original height and width of each image in pixels."""
        return [(int(h), int(w)) for h, w in self.meta["shapes"]]

    @property
    def digests(self) -> list[str]:
        return list(self.meta["digests"])

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


def check_pair(record: Record) -> tuple[int, int]:
    """Return the height and width of a pair, from the file headers.

    Raises:
        InputError: a file is not an image, or image and mask differ in size.
    """
    shape = read_size(record.image)
    _check_same_size(record, shape, read_size(record.mask))
    return shape


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
    """Read a pair at ``size`` x ``size`` pixels; raises InputError as ``check_pair`` does."""
    image, shape = read_image_and_size(record.image, draft=draft_size(size))
    mask, area, thresholded = read_binary_mask(record.mask)
    _check_same_size(record, shape, (mask.height, mask.width))
    soft = mask.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    small = (np.asarray(soft) >= 128).astype(np.uint8)
    return Pair(resize_square(image, size), small, area, thresholded, shape)


def _check_same_size(record: Record, image: tuple[int, int], mask: tuple[int, int]) -> None:
    if image != mask:
        raise InputError(
            f"{record.mask}: the mask has {mask[1]}x{mask[0]} pixels, "
            f"its image {image[1]}x{image[0]}; they must be of one size"
        )


def _key(index: DatasetIndex, image_size: int) -> str:
    digest = hashlib.sha256(f"{VERSION}|{image_size}".encode())
    for r in index.records:
        files = [(str(p.resolve()), p.stat()) for p in (r.image, r.mask)]
        digest.update(repr([r.name] + [(p, s.st_size, s.st_mtime_ns) for p, s in files]).encode())
    return f"{digest.hexdigest()[:16]}-{image_size}"


def _build(index: DatasetIndex, size: int, path: Path, on_progress: Progress) -> None:
    temporary = path.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    try:
        meta = _write_arrays(index.records, size, temporary, on_progress)
        (temporary / "meta.json").write_text(json.dumps(meta))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(
    records: Sequence[Record], size: int, folder: Path, on_progress: Progress
) -> dict[str, Any]:
    """Write ``images.npy`` and ``masks.npy``; return the contents of ``meta.json``."""
    n = len(records)
    images = _allocate(folder / "images.npy", (n, size, size, 3))
    masks = _allocate(folder / "masks.npy", (n, size, size))
    meta: dict[str, Any] = {"names": [r.name for r in records], "thresholded": []}
    meta |= {"areas": [], "shapes": [], "digests": []}
    problems: list[str] = []

    def store(i: int) -> dict[str, Any] | InputError:
        try:
            images[i], masks[i], area, thresholded, shape = read_pair(records[i], size)
        except InputError as error:
            return error
        digest = hashlib.blake2b(images[i].tobytes(), digest_size=8).hexdigest()
        names = [records[i].name] if thresholded else []
        return {"areas": [area], "shapes": [shape], "digests": [digest], "thresholded": names}

    # PIL decodes without the GIL.
    with freed_memory_retained(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for i, facts in enumerate(pool.map(store, range(n))):
            if isinstance(facts, InputError):
                problems.append(str(facts))
            else:
                for key, values in facts.items():
                    meta[key] += values
            on_progress(i + 1, n)
    if problems:
        count = f"; {len(problems)} of {n} pairs cannot be used" if len(problems) > 1 else ""
        raise InputError(f"data: {format_some(problems, limit=1)}{count}")
    images.flush()
    masks.flush()
    return meta


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
