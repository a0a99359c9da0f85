"""Audit of a data set: read every pair and report its defects."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from lesionseg.data.cache import Cache, check_pair
from lesionseg.data.duplicates.alignment import THUMB_PX
from lesionseg.data.duplicates.matching import Fingerprint, Progress, fingerprint_image
from lesionseg.data.image_io import (
    Pixels,
    draft_size,
    read_binary_mask,
    read_image,
    read_image_and_size,
)
from lesionseg.data.index import DatasetIndex
from lesionseg.data.pairs import Record, escape_unprintable
from lesionseg.errors import InputError, format_some
from lesionseg.runtime.malloc import freed_memory_retained

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PairAudit:
    """Properties of one pair.

    Attributes:
        name: the record's name, with its split before it (``train/ISIC_0000001``) if two official
            splits have a record of this name.
        shape: height and width of the image.
        area: the lesion's share of the image, 0 to 1.
        touches_border: whether the lesion touches the border of the image.
        thresholded: whether the mask was not binary.
        problem: why the pair is unusable.
        components: number of 8-connected components of the mask.
        fingerprint: None for an unusable pair. Its digest is that of the reduced image, or of all
            pixels for an image without structure.
    """

    name: str
    shape: tuple[int, int] = (0, 0)
    area: float = 0.0
    touches_border: bool = False
    thresholded: bool = False
    problem: str | None = None
    components: int = 0
    fingerprint: Fingerprint | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class DatasetAudit:
    """A data set and the audit of each of its pairs, in the order of its records."""

    index: DatasetIndex
    pairs: tuple[PairAudit, ...]

    @property
    def problems(self) -> list[str]:
        """Why pairs are unusable, one line each."""
        return [p.problem for p in self.pairs if p.problem]

    @property
    def usable(self) -> list[PairAudit]:
        """The usable pairs."""
        return [p for p in self.pairs if not p.problem]

    def unusual_masks(self) -> dict[str, list[PairAudit]]:
        """Return the usable pairs whose masks should be inspected, by kind."""
        pairs = self.usable
        return {
            "empty": [p for p in pairs if p.area == 0],
            "full": [p for p in pairs if p.area == 1],
            "not_binary": [p for p in pairs if p.thresholded],
            "several_components": [p for p in pairs if p.components > 1],
        }

    def summarize(self) -> dict[str, str]:
        """Return the rows of a table: property and value."""
        splits = Counter(r.split for r in self.index.records if r.split)
        rows = {
            "layout": self.index.layout,
            "pairs": str(len(self.pairs)),
            "groups": str(len({r.group for r in self.index.records})),
            "official split": ", ".join(f"{k} {n}" for k, n in splits.items()) or "none",
            "unusable pairs": str(len(self.problems)),
        }
        unmatched = self.index.masks_without_image
        if unmatched:
            rows["masks without image"] = f"{len(unmatched)}, {_list_names(unmatched)}"
        return rows | self._summarize_masks() if self.usable else rows

    def _summarize_masks(self) -> dict[str, str]:
        pairs, unusual = self.usable, self.unusual_masks()
        shapes = Counter(p.shape for p in pairs)
        (height, width), count = shapes.most_common(1)[0]
        low, median, high = np.percentile([p.area for p in pairs], [5, 50, 95])
        return {
            "sizes": f"{len(shapes)}, most often {width}x{height} ({count})",
            "lesion area": f"median {median:.1%}, 5 to 95%: {low:.1%} to {high:.1%}",
            "empty masks": _count_and_list(unusual["empty"]),
            "full masks": _count_and_list(unusual["full"]),
            "lesions on the border": f"{np.mean([p.touches_border for p in pairs]):.1%}",
            "several components": _count_and_list(unusual["several_components"]),
            "masks not binary": _count_and_list(unusual["not_binary"], "thresholded at 128: "),
        }

    def require_usable(self) -> None:
        """Raise InputError if a pair is unusable."""
        if self.problems:
            raise InputError(
                f"data: {len(self.problems)} of {len(self.pairs)} pairs cannot be used: "
                f"{format_some(self.problems, limit=1)}"
            )


def audit_dataset(
    root: Path, layout: str = "auto", on_progress: Progress | None = None
) -> DatasetAudit:
    """Read every pair of a data set once, the mask at its own size.

    Groups and names in two official splits are accepted; ``leakage.find_leaks`` reports them.

    Raises:
        InputError: the layout is unknown or not found.
    """
    index = DatasetIndex.read(root, layout, lenient=True)
    pairs = _map_parallel(_audit_pair, index.records, on_progress)
    names = _unique_names(index.records)
    pairs = [replace(pair, name=name) for pair, name in zip(pairs, names, strict=True)]
    return DatasetAudit(index, tuple(pairs))


def audit_cache(index: DatasetIndex, cache: Cache) -> DatasetAudit:
    """Audit the images of a cache, whose pairs are all usable.

    Masks are examined at the size of the cache, so that tiny components may be missed. Image files
    are read only if the cached images are too small to compare, or have no structure.
    """
    # Properties that build a list of all images: read once.
    shapes, digests = cache.shapes, cache.digests
    areas, thresholded = cache.areas, set(cache.thresholded)

    def audit_entry(i: int) -> PairAudit:
        record, mask, small = index.records[i], cache.masks[i], cache.images[i]
        # Images of different shapes differ even if their squares are equal.
        digest = f"{shapes[i]}-{digests[i]}"
        if len(small) >= THUMB_PX:
            image = Image.fromarray(small)
        else:
            image, _ = read_image_and_size(record.image, draft=draft_size(THUMB_PX))
        return PairAudit(
            record.name,
            shapes[i],
            float(areas[i]),
            _touches_border(mask),
            record.name in thresholded,
            components=_count_components(mask),
            fingerprint=_fingerprint(record, image, digest),
        )

    return DatasetAudit(index, tuple(_map_parallel(audit_entry, range(len(index.records)))))


def digest_full_images(records: Sequence[Record]) -> list[str]:
    """Return a digest of all pixels of each record's image, whatever its file format."""
    return _map_parallel(_digest_full_image, records)


def _digest_full_image(record: Record) -> str:
    image = read_image(record.image)
    return _digest(np.asarray(image), (image.height, image.width))


def _fingerprint(record: Record, reduced: Image.Image, digest: str) -> Fingerprint:
    """Fingerprint a reduced image; without structure its digest is replaced by the full one.

    Reduced to a few pixels, all black frames are equal and a single bright pixel is lost.
    """
    fingerprint = fingerprint_image(reduced, digest)
    if fingerprint.is_flat:
        return fingerprint._replace(digest=_digest_full_image(record))
    return fingerprint


def _unique_names(records: Sequence[Record]) -> list[str]:
    counts = Counter(r.name.lower() for r in records)
    return [f"{r.split}/{r.name}" if counts[r.name.lower()] > 1 else r.name for r in records]


def _map_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], on_progress: Progress | None = None
) -> list[Result]:
    results = []
    with freed_memory_retained(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for result in pool.map(function, items):
            results.append(result)
            if on_progress:
                on_progress(len(results), len(items))
    return results


def _audit_pair(record: Record) -> PairAudit:
    try:
        # Half the pixels of a large JPEG are enough for its fingerprint; all data are decoded.
        image, shape = read_image_and_size(record.image, draft=draft_size(THUMB_PX))
        binary = read_binary_mask(record.mask)
        if (binary.image.height, binary.image.width) != shape:
            check_pair(record)
        fingerprint = _fingerprint(record, image, _digest(np.asarray(image), shape))
    except InputError as error:
        return PairAudit(record.name, problem=escape_unprintable(str(error)))
    mask = np.asarray(binary.image)
    return PairAudit(
        record.name,
        shape,
        binary.area,
        _touches_border(mask),
        binary.thresholded,
        components=_count_components(mask),
        fingerprint=fingerprint,
    )


def _touches_border(mask: Pixels) -> bool:
    return any(bool(edge.any()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def _count_components(mask: Pixels) -> int:
    labels, _ = cv2.connectedComponents(np.ascontiguousarray(mask), connectivity=8)
    return int(labels) - 1


def _digest(pixels: Pixels, shape: tuple[int, int]) -> str:
    return hashlib.blake2b(repr(shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()


def _count_and_list(pairs: Sequence[PairAudit], prefix: str = "") -> str:
    return f"{len(pairs)}, {prefix}{_list_names([p.name for p in pairs])}" if pairs else "0"


def _list_names(names: Sequence[str]) -> str:
    return format_some(map(escape_unprintable, names))
