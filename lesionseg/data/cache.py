"""Every picture decoded and resized once, kept as memory-mapped uint8 arrays.

A cache is a folder ``<root>/<key>/``; the key names the files (with their sizes and times) and
the image size, so that another data set or size is another cache. It is built in a folder of
its own and renamed when whole: what lies under a key is complete. Processes that ask at once
wait for the one that builds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
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

#: Raise it when what a cache holds changes: old ones are then left alone and built anew.
VERSION = 3

Progress = Callable[[int, int], None]


def default_root() -> Path:
    """``$LESIONSEARCH_CACHE``, or ``lesionsearch`` in the user's cache folder."""
    own = os.environ.get("LESIONSEARCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "lesionsearch"


@dataclass(frozen=True)
class Cache:
    """A complete cache; the arrays are mapped when first used and stay on disk.

    Pickling hands on the path, not the pixels.
    """

    path: Path

    @cached_property
    def images(self) -> Pixels:
        """uint8 [N, S, S, 3], RGB."""
        mapped: Pixels = np.load(self.path / "images.npy", mmap_mode="r")
        return mapped

    @cached_property
    def masks(self) -> Pixels:
        """uint8 [N, S, S], 1 on the lesion."""
        mapped: Pixels = np.load(self.path / "masks.npy", mmap_mode="r")
        return mapped

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What is known of the records beside their pixels."""
        meta: dict[str, Any] = json.loads((self.path / "meta.json").read_text())
        return meta

    @property
    def names(self) -> list[str]:
        """The records' names, in the order of the arrays."""
        return list(self.meta["names"])

    @property
    def areas(self) -> NDArray[np.float64]:
        """The lesion's share of each picture, at the mask's own size, [N] in [0, 1]."""
        return np.asarray(self.meta["areas"], dtype=np.float64)

    @property
    def thresholded(self) -> list[str]:
        """Names of the masks that were not binary and had to be thresholded."""
        return list(self.meta["thresholded"])

    @property
    def shapes(self) -> list[tuple[int, int]] | None:
        """Height and width of each picture as it lies on disk; None in a cache of older times."""
        found = self.meta.get("shapes")
        return None if found is None else [(int(h), int(w)) for h, w in found]

    @property
    def digests(self) -> list[str] | None:
        """A digest of each picture's pixels: equal ones are one picture. None as for shapes."""
        found = self.meta.get("digests")
        return None if found is None else list(found)

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        return (Cache, (self.path,))


def build_cache(
    index: DatasetIndex,
    image_size: int,
    root: Path | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Cache:
    """The cache of a data set at one size: found, or built now.

    Raises InputError: pictures that cannot be read or do not fit together (all of them are
    looked at first), or a disk that is full. Nothing half-built stays behind.
    """
    root = root or default_root()
    path = root / _key(index, image_size)
    if path.is_dir():
        return Cache(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_dir():  # another process may have built it meanwhile
                _build(index, image_size, path, on_progress)
    except OSError as error:
        raise InputError(
            f"cache: {root}: cannot be written: {error.strerror or error}; make room, or set "
            f"LESIONSEARCH_CACHE to another folder"
        ) from error
    return Cache(path)


def check_pair(record: Record) -> tuple[int, int]:
    """Height and width of a pair, from the headers; InputError if its mask is of another size."""
    image = read_size(record.image)
    _refuse_sizes(record, image, read_size(record.mask))
    return image


class Pair(NamedTuple):
    """A pair as a cache keeps it: image uint8 [S, S, 3], mask uint8 [S, S] in {0, 1}.

    area: the lesion's share, and shape: height and width, both at the pair's own size.
    thresholded: whether the mask was not binary.
    """

    image: Pixels
    mask: Pixels
    area: float
    thresholded: bool
    shape: tuple[int, int]


def read_pair(record: Record, size: int) -> Pair:
    """A pair at ``size`` x ``size``; InputError as ``check_pair``."""
    image, shape = read_image_and_size(record.image, draft=draft_size(size))
    mask, area, thresholded = read_binary_mask(record.mask)
    _refuse_sizes(record, shape, (mask.height, mask.width))
    soft = mask.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    small = (np.asarray(soft) >= 128).astype(np.uint8)
    return Pair(resize_square(image, size), small, area, thresholded, shape)


def _refuse_sizes(record: Record, image: tuple[int, int], mask: tuple[int, int]) -> None:
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
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed; the lock is ours
    partial.mkdir()
    try:
        meta = _fill(index.records, size, partial, on_progress)
        (partial / "meta.json").write_text(json.dumps(meta))
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(
    records: tuple[Record, ...], size: int, folder: Path, on_progress: Progress
) -> dict[str, Any]:
    n = len(records)
    images = _allocate(folder / "images.npy", (n, size, size, 3))
    masks = _allocate(folder / "masks.npy", (n, size, size))
    areas, thresholded, broken = [0.0] * n, [], []
    shapes, digests = [(0, 0)] * n, [""] * n

    def work(i: int) -> InputError | bool:
        try:
            images[i], masks[i], areas[i], odd, shapes[i] = read_pair(records[i], size)
            digests[i] = hashlib.blake2b(images[i].tobytes(), digest_size=8).hexdigest()
            return odd
        except InputError as error:
            return error

    # PIL decodes without the GIL.
    with freed_memory_retained(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for i, outcome in enumerate(pool.map(work, range(n))):
            if isinstance(outcome, InputError):
                broken.append(str(outcome))
            elif outcome:
                thresholded.append(records[i].name)
            on_progress(i + 1, n)
    if broken:
        more = f"; {len(broken)} of {n} pairs cannot be used" if len(broken) > 1 else ""
        raise InputError(f"data: {format_some(broken, limit=1)}{more}")
    images.flush()
    masks.flush()
    return {
        "names": [r.name for r in records],
        "areas": areas,
        "thresholded": thresholded,
        "shapes": shapes,
        "digests": digests,
    }


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    array: np.memmap[Any, np.dtype[np.uint8]] = open_memmap(
        path, mode="w+", dtype=np.uint8, shape=shape
    )
    # A sparse file on a full disk kills the process at the first write to its map (SIGBUS);
    # asking for the blocks now gives an error that can be told.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
