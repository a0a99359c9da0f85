"""All images and masks at one size, as memory-mapped uint8 arrays.

A cache is a folder ``<root>/<key>/``. The key is a hash of the file names, sizes and times and of
the image size. A cache is built in a temporary folder and renamed when complete; processes that
need the same cache wait for the one that builds it. A cache that was damaged or deleted is built
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from PIL import Image

from lesionseg.data.image_io import Pixels, resize_square
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_checks import ReadMask, looks_inverted
from lesionseg.data.pair_io import MaskReading, find_records_to_turn, load_pair
from lesionseg.data.pairs import Record
from lesionseg.errors import InputError, format_some
from lesionseg.runtime.files import atomic_folder

#: Part of the key. To be increased when the contents of a cache change.
VERSION = 5

#: Names of a cache's files.
IMAGES, MASKS, META = "images.npy", "masks.npy", "meta.json"
#: Attempts to build a cache if its parent folder is deleted meanwhile.
BUILD_ATTEMPTS = 3
#: Exceptions raised when a cache with missing, truncated or overwritten files is opened.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)

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
        readings: how each mask was read.
    """

    path: Path

    def __post_init__(self) -> None:
        self.reload()

    def reload(self) -> None:
        """Open the files; raise one of DAMAGE if they are not those of a complete cache."""
        stamps = self._read_stamps()
        images: Pixels = np.load(self.path / IMAGES, mmap_mode="r")
        masks: Pixels = np.load(self.path / MASKS, mmap_mode="r")
        meta = json.loads((self.path / META).read_text())
        n, size = len(meta["names"]), images.shape[1] if images.ndim == 4 else 0
        if images.shape != (n, size, size, 3) or masks.shape != (n, size, size):
            raise ValueError(f"{self.path}: the arrays do not have the shapes of {n} pairs")
        self.names: list[str] = meta["names"]
        self.areas = np.asarray(meta["areas"], dtype=np.float64)
        self.shapes = [(int(height), int(width)) for height, width in meta["shapes"]]
        self.digests: list[str] = meta["digests"]
        stored: dict[str, dict[str, Any]] = meta["readings"]
        self.readings = [MaskReading.from_dict(stored.get(name, {})) for name in self.names]
        self.images, self.masks, self._stamps = images, masks, stamps

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    def is_unchanged(self) -> bool:
        """Return whether the files have not been replaced or truncated since they were opened."""
        try:
            return self._read_stamps() == self._stamps
        except OSError:
            return False

    def check_size(self) -> None:
        """Raise OSError if a mapped file was truncated since it was opened.

        The rest of its last page then reads as zeros, and reading beyond that page ends the process
        (SIGBUS). A deleted file keeps its contents while it is mapped.
        """
        for name, array in ((IMAGES, self.images), (MASKS, self.masks)):
            size, needed = array._mmap.size(), array.offset + array.nbytes  # type: ignore[attr-defined]
            if size < needed:
                raise OSError(f"{self.path / name} was truncated to {size} of {needed} bytes")

    def _read_stamps(self) -> list[tuple[int, int, int]]:
        stats = [(self.path / name).stat() for name in (IMAGES, MASKS, META)]
        return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in stats]

    @property
    def thresholded(self) -> list[str]:
        """Names of the masks that were not binary."""
        return [n for n, r in zip(self.names, self.readings, strict=True) if r.thresholded]

    def list_masks(self, records: Iterable[Record]) -> list[ReadMask]:
        """Return how the masks were read; records: those of the cache, in its order."""
        rows = zip(records, self.areas.tolist(), self.readings, strict=True)
        return [ReadMask(*row) for row in rows]

    def apply_readings(self, records: Iterable[Record]) -> tuple[Record, ...]:
        """Return the records with the orientations that the cache's masks were turned by."""
        readings = dict(zip(self.names, self.readings, strict=True))
        return tuple(readings[record.name].apply(record) for record in records)

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
    path = root / cache_key(index, image_size)
    with suppress(*DAMAGE):
        return Cache(path)
    for attempts_left in reversed(range(BUILD_ATTEMPTS)):
        try:
            return _open_or_build(index, image_size, path, on_progress)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and attempts_left:
                continue  # the folder of all caches was deleted meanwhile
            raise InputError(
                f"cache: {root}: cannot be written: {error.strerror or error}; make room, or set "
                f"LESIONSEARCH_CACHE to another folder"
            ) from error
    raise AssertionError("the last attempt returns or raises")


def restore_cache(
    cache: Cache, index: DatasetIndex, on_progress: Progress = lambda done, total: None
) -> None:
    """Reopen a cache whose files have changed; rebuild it if they are damaged or missing.

    Raises:
        InputError: the images are missing or were changed too, or the cache cannot be written.
    """
    with suppress(*DAMAGE):
        cache.reload()
        return
    what = f"cache: {cache.path} is damaged or missing and cannot be built again"
    try:
        built = build_cache(index, cache.image_size, cache.path.parent, on_progress)
    except OSError as error:  # an image cannot be found
        cause = f"{error.filename}: {error.strerror}; restore the images and start again"
        raise InputError(f"{what}: {cause}") from None
    if built.path != cache.path:
        raise InputError(f"{what}: the images have changed; start again")
    cache.reload()


class Pair(NamedTuple):
    """An image uint8 [S, S, 3] and its mask uint8 [S, S] in {0, 1}, at the size of a cache.

    ``area`` is the lesion's share and ``shape`` the height and width of the original.
    """

    image: Pixels
    mask: Pixels
    area: float
    shape: tuple[int, int]
    reading: MaskReading


def read_pair(record: Record, size: int) -> Pair:
    """Read a pair at ``size`` x ``size`` pixels.

    Raises:
        InputError: a file is not an image, or image and mask differ in size.
    """
    pair = load_pair(record, size)
    soft = pair.mask.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    image, mask = resize_square(pair.image, size), (np.asarray(soft) >= 128).astype(np.uint8)
    reading = replace(pair.reading, looks_inverted=looks_inverted(image, mask))
    return Pair(image, mask, pair.area, pair.shape, reading)


def cache_key(index: DatasetIndex, image_size: int) -> str:
    """Return the name of a data set's cache at an image size; other files have another name."""
    digest = hashlib.sha256(f"{VERSION}|{image_size}".encode())
    for r in index.records:
        files = [(str(p.resolve()), p.stat()) for p in (r.image, r.mask)]
        stamps = [(p, s.st_size, s.st_mtime_ns) for p, s in files]
        digest.update(repr([r.name, r.is_inverted, *stamps]).encode())
    return f"{digest.hexdigest()[:16]}-{image_size}"


def _open_or_build(index: DatasetIndex, size: int, path: Path, on_progress: Progress) -> Cache:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        try:
            return Cache(path)  # another process has built it in the meantime
        except DAMAGE:
            _build(index, size, path, on_progress)
        return Cache(path)


class _Row(NamedTuple):
    """What is stored of a pair besides its pixels."""

    area: float
    shape: tuple[int, int]
    digest: str
    reading: MaskReading


def _build(index: DatasetIndex, size: int, path: Path, on_progress: Progress) -> None:
    with atomic_folder(path, replace=True) as folder:
        meta = _write_arrays(index.records, size, folder, on_progress)
        (folder / META).write_text(json.dumps(meta))


def _write_arrays(
    records: Sequence[Record], size: int, folder: Path, on_progress: Progress
) -> dict[str, Any]:
    """Write ``images.npy`` and ``masks.npy``; return the contents of ``meta.json``."""
    n = len(records)
    images = _allocate(folder / IMAGES, (n, size, size, 3))
    masks = _allocate(folder / MASKS, (n, size, size))

    def store(item: tuple[int, Record]) -> _Row | InputError:
        i, record = item
        try:
            images[i], masks[i], area, shape, reading = read_pair(record, size)
        except InputError as error:
            return error
        digest = hashlib.blake2b(images[i].tobytes(), digest_size=8).hexdigest()
        return _Row(area, shape, digest, reading)

    rows = map_parallel(store, list(enumerate(records)), on_progress)
    readings = [row.reading if isinstance(row, _Row) else None for row in rows]
    for i, record in find_records_to_turn(records, readings).items():
        rows[i] = store((i, record))
    problems = [str(row) for row in rows if isinstance(row, InputError)]
    if problems:
        count = f"; {len(problems)} of {n} pairs cannot be used" if len(problems) > 1 else ""
        raise InputError(f"data: {format_some(problems, limit=1)}{count}")
    images.flush()
    masks.flush()
    areas, shapes, digests, readings = zip(*rows, strict=True)
    names = [r.name for r in records]
    stored = {n: r.to_dict() for n, r in zip(names, readings, strict=True) if r != MaskReading()}
    meta = {"names": names, "areas": areas, "shapes": shapes, "digests": digests}
    return meta | {"readings": stored}


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
