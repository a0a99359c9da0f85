"""audit(): every pair of a data set read, and what is wrong with it."""

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
from lesionseg.data.duplicates.alignment import SIDE
from lesionseg.data.duplicates.matching import Look, look
from lesionseg.data.image_io import (
    Pixels,
    enough,
    read_binary,
    read_image,
    read_image_and_size,
)
from lesionseg.data.index import DatasetIndex, Record
from lesionseg.data.pairs import printable
from lesionseg.errors import InputError, some
from lesionseg.runtime.malloc import memory_kept

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """What was seen of one pair. area: the lesion's share of the picture, in [0, 1].

    name: the record's; where two official splits have one of this name, with its split before it,
    as in train/ISIC_0000001. components: pieces of the mask that do not touch, not even at a
    corner. look: what copies of the picture are known by; None where the pair cannot be used. Its
    digest is that of the picture made smaller, and of all pixels where the picture shows nothing.
    """

    name: str
    shape: tuple[int, int] = (0, 0)
    area: float = 0.0
    on_border: bool = False
    thresholded: bool = False
    problem: str | None = None
    components: int = 0
    look: Look | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Audit:
    """A data set and what was seen of each of its pairs, in the order of its records."""

    index: DatasetIndex
    pairs: tuple[Pair, ...]

    @property
    def problems(self) -> list[str]:
        """What keeps pairs from being used, one line each."""
        return [p.problem for p in self.pairs if p.problem]

    @property
    def whole(self) -> list[Pair]:
        """The pairs that can be used."""
        return [p for p in self.pairs if not p.problem]

    def odd(self) -> dict[str, list[Pair]]:
        """Usable pairs that are worth a look, by what is odd about their masks."""
        kinds: dict[str, Callable[[Pair], bool]] = {
            "empty": lambda p: p.area == 0,
            "full": lambda p: p.area == 1,
            "not binary": lambda p: p.thresholded,
            "several components": lambda p: p.components > 1,
        }
        return {kind: [p for p in self.whole if is_odd(p)] for kind, is_odd in kinds.items()}

    def facts(self) -> dict[str, str]:
        """What there is, by what it is called."""
        splits = Counter(r.split for r in self.index.records if r.split)
        facts = {
            "layout": self.index.layout,
            "pairs": str(len(self.pairs)),
            "groups": str(len({r.group for r in self.index.records})),
            "official split": ", ".join(f"{k} {n}" for k, n in splits.items()) or "none",
            "not usable": str(len(self.problems)),
        }
        alone = self.index.masks_without_image
        facts |= {"masks without image": f"{len(alone)}, {_named(alone)}"} if alone else {}
        return facts | _seen(self) if self.whole else facts

    def refuse_broken(self) -> None:
        """InputError where a pair cannot be used."""
        if self.problems:
            raise InputError(
                f"data: {len(self.problems)} of {len(self.pairs)} pairs cannot be used: "
                f"{some(self.problems, limit=1)}"
            )


def audit(root: Path, layout: str = "auto", on_progress: Progress | None = None) -> Audit:
    """Reads every pair once, its mask at its own size. InputError where the layout is wrong.

    Groups and names that lie in two official splits are taken as they are: ``leaks.check`` finds
    them.
    """
    index = DatasetIndex.read(root, layout, torn=True)
    pairs = _each(_read, index.records, on_progress)
    called = _called(index.records)
    return Audit(index, tuple(replace(p, name=n) for p, n in zip(pairs, called, strict=True)))


def audit_cached(index: DatasetIndex, cache: Cache) -> Audit:
    """What an audit sees of the pictures in a cache, of pairs that can all be used.

    Masks are seen at the cache's size, so that what is tiny may be missed. Pictures are read again
    only where those of the cache are too small to tell copies from others, or show nothing.
    """
    shapes = cache.shapes or [(0, 0)] * len(index.records)
    # Each makes a list of all pictures: once for all of them, not once for each.
    digests, areas, thresholded = cache.digests, cache.areas, set(cache.thresholded)

    def seen(i: int) -> Pair:
        record, mask, small = index.records[i], cache.masks[i], cache.images[i]
        # Pictures of two shapes are not the same, however equal they are as squares.
        known = f"{shapes[i]}-{digests[i]}" if digests else _digest(small, shapes[i])
        if len(small) >= SIDE:
            picture = Image.fromarray(small)
        else:
            picture, _ = read_image_and_size(record.image, draft=enough(SIDE))
        return Pair(
            record.name,
            shapes[i],
            float(areas[i]),
            _on_border(mask),
            record.name in thresholded,
            components=_components(mask),
            look=_look(record, picture, known),
        )

    return Audit(index, _each(seen, range(len(index.records))))


def full_digests(records: Sequence[Record]) -> list[str]:
    """For each record a digest of all of its picture's pixels, whatever the kind of its file.

    InputError where a picture cannot be read.
    """
    with memory_kept(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(_full_digest, records))


def _full_digest(record: Record) -> str:
    image = read_image(record.image)
    return _digest(np.asarray(image), (image.height, image.width))


def _look(record: Record, picture: Image.Image, digest: str) -> Look:
    """What a record's picture, made smaller, is known by.

    Of what shows nothing the small picture says nothing: black frames of any size are one there,
    and a lone bright pixel is gone.
    """
    seen = look(picture, digest)
    return seen._replace(digest=_full_digest(record)) if seen.is_flat else seen


def _called(records: Sequence[Record]) -> list[str]:
    counted = Counter(r.name.lower() for r in records)
    return [f"{r.split}/{r.name}" if counted[r.name.lower()] > 1 else r.name for r in records]


def _each(
    work: Callable[[T], Pair], of: Sequence[T], on_progress: Progress | None = None
) -> tuple[Pair, ...]:
    pairs = []
    with memory_kept(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for i, pair in enumerate(pool.map(work, of)):
            pairs.append(pair)
            if on_progress:
                on_progress(i + 1, len(of))
    return tuple(pairs)


def _read(record: Record) -> Pair:
    try:
        # Half of a large JPEG's pixels are enough to know its copies by; all of it is still read.
        image, shape = read_image_and_size(record.image, draft=enough(SIDE))
        binary = read_binary(record.mask)
        if (binary.picture.height, binary.picture.width) != shape:
            check_pair(record)
        seen = _look(record, image, _digest(np.asarray(image), shape))
    except InputError as error:
        return Pair(record.name, problem=printable(str(error)))
    mask = np.asarray(binary.picture)
    return Pair(
        record.name,
        shape,
        binary.area,
        _on_border(mask),
        binary.thresholded,
        components=_components(mask),
        look=seen,
    )


def _on_border(mask: Pixels) -> bool:
    return any(bool(edge.any()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def _components(mask: Pixels) -> int:
    found, _ = cv2.connectedComponents(np.ascontiguousarray(mask), connectivity=8)
    return int(found) - 1


def _digest(pixels: Pixels, shape: tuple[int, int]) -> str:
    return hashlib.blake2b(repr(shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()


def _seen(audit: Audit) -> dict[str, str]:
    pairs, odd = audit.whole, audit.odd()
    shapes = Counter(p.shape for p in pairs)
    (height, width), most = shapes.most_common(1)[0]
    low, middle, high = np.percentile([p.area for p in pairs], [5, 50, 95])
    return {
        "sizes": f"{len(shapes)}, most often {width}x{height} ({most})",
        "lesion area": f"median {middle:.1%}, 5 to 95%: {low:.1%} to {high:.1%}",
        "empty masks": _told(odd["empty"]),
        "full masks": _told(odd["full"]),
        "lesions on the border": f"{np.mean([p.on_border for p in pairs]):.1%}",
        "several components": _told(odd["several components"]),
        "masks not binary": _told(odd["not binary"], "cut at 128: "),
    }


def _told(pairs: Sequence[Pair], word: str = "") -> str:
    return f"{len(pairs)}, {word}{_named([p.name for p in pairs])}" if pairs else "0"


def _named(names: Sequence[str]) -> str:
    return some(map(printable, names))
