"""Audit of a data set: read every pair and report its defects."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from lesionseg.data.cache import Cache, Progress, map_parallel
from lesionseg.data.duplicates.alignment import THUMB_PX
from lesionseg.data.duplicates.matching import Fingerprint, fingerprint_image
from lesionseg.data.duplicates.thumbnails import load_thumbnails
from lesionseg.data.image_io import Pixels, read_image
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_checks import (
    ReadMask,
    looks_inverted,
    require_lesions,
)
from lesionseg.data.pair_io import Alignment, MaskReading, find_records_to_turn, load_pair
from lesionseg.data.pairs import Record, escape_unprintable
from lesionseg.errors import InputError, format_some


@dataclass(frozen=True)
class PairAudit:
    """A pair and its properties; an unusable one has a problem, no reading and no fingerprint."""

    record: Record
    dataset: str = ""  # name of the data set, if there are several
    shape: tuple[int, int] = (0, 0)  # height and width of the image
    area: float = 0.0  # the lesion's share of the image, 0 to 1
    touches_border: bool = False
    reading: MaskReading | None = None  # how the mask was read
    problem: str | None = None
    components: int = 0  # 8-connected, of the mask
    #: The digest is that of the reduced image, or of all pixels for an image without structure.
    fingerprint: Fingerprint | None = field(default=None, repr=False, compare=False)

    @property
    def thresholded(self) -> bool:
        """Whether the mask was not binary."""
        return self.reading is not None and self.reading.thresholded

    def __str__(self) -> str:
        place = " ".join(part for part in (self.dataset, self.record.split) if part)
        return escape_unprintable(f"{self.record.name} ({place})" if place else self.record.name)


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
    def masks(self) -> list[ReadMask]:
        """How the masks of the usable pairs were read."""
        return [ReadMask(p.record, p.area, p.reading) for p in self.pairs if p.reading]

    def require_usable(self) -> None:
        """Raise InputError if a pair is unusable, or no mask shows both lesion and skin."""
        if self.problems:
            raise InputError(
                f"data: {len(self.problems)} of {len(self.pairs)} pairs cannot be used: "
                f"{format_some(self.problems, limit=1)}"
            )
        require_lesions(self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON; docs/data.md describes its keys."""
        index, pairs = self.index, [p for p in self.pairs if not p.problem]
        sizes = Counter(p.shape for p in pairs)
        counts = Counter(r.name.lower() for r in index.records)

        def name(pair: PairAudit) -> str:
            """Return the record's name, preceded by its split if two splits have the name."""
            record = pair.record
            is_ambiguous = counts[record.name.lower()] > 1
            return f"{record.split}/{record.name}" if is_ambiguous else record.name

        return {
            "root": str(index.root),
            "layout": index.layout,
            "pairs": len(self.pairs),
            "groups": len({r.group for r in index.records}),
            "official_splits": dict(Counter(r.split for r in index.records if r.split)),
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in sizes.most_common()],
            "masks_without_image": list(index.masks_without_image),
            "unusable": [{"name": name(p), "problem": p.problem} for p in self.pairs if p.problem],
            "empty": [name(p) for p in pairs if p.area == 0],
            "full": [name(p) for p in pairs if p.area == 1],
            "from_alpha": [name(p) for p in pairs if p.reading and p.reading.from_alpha],
            "orientations": {
                name(p): {"fits": p.reading.alignment, "turned": p.reading.is_turned}
                for p in pairs
                if p.reading and p.reading.alignment is not Alignment.SAME
            },
            "seem_inverted": [name(p) for p in pairs if p.reading and p.reading.looks_inverted],
            "not_binary": [name(p) for p in pairs if p.thresholded],
            "on_border": [name(p) for p in pairs if p.touches_border],
            "components": {name(p): p.components for p in pairs if p.components > 1},
            "areas": {name(p): p.area for p in pairs},
        }

    def summarize(self) -> dict[str, str]:
        """Return the rows of a table: property and value."""
        data = self.to_dict()
        splits = ", ".join(f"{split} {n}" for split, n in data["official_splits"].items())
        rows = {
            "layout": data["layout"],
            "pairs": str(data["pairs"]),
            "groups": str(data["groups"]),
            "official split": splits or "none",
            "unusable pairs": str(len(data["unusable"])),
        }
        if data["masks_without_image"]:
            rows["masks without image"] = _count_and_list(data["masks_without_image"])
        if not data["areas"]:
            return rows
        size, alpha = data["sizes"][0], data["from_alpha"]
        places = [f"colours {n}"] if (n := len(data["areas"]) - len(alpha)) else []
        places += [f"alpha channel {_count_and_list(alpha)}"] if alpha else []
        low, median, high = np.percentile(list(data["areas"].values()), [5, 50, 95])
        return rows | {
            "sizes": f"{len(data['sizes'])}, most often {size['width']}x{size['height']} "
            f"({size['images']})",
            "lesion area": f"median {median:.1%}, 5 to 95%: {low:.1%} to {high:.1%}",
            "masks read from": ", ".join(places),
            "empty masks": _count_and_list(data["empty"]),
            "full masks": _count_and_list(data["full"]),
            "lesions on the border": f"{len(data['on_border']) / len(data['areas']):.1%}",
            "several components": _count_and_list(data["components"]),
            "masks not binary": _count_and_list(data["not_binary"], "thresholded at 128: "),
        }


def audit_dataset(
    index: DatasetIndex, on_progress: Progress = lambda done, total: None, name: str = ""
) -> DatasetAudit:
    """Read every pair of the data set ``name`` once, the mask at its own size."""
    pairs = map_parallel(_audit_pair, index.records, on_progress)
    for i, record in find_records_to_turn(index.records, [p.reading for p in pairs]).items():
        pairs[i] = _audit_pair(record)
    return DatasetAudit(index, tuple(replace(pair, dataset=name) for pair in pairs))


def audit_cache(index: DatasetIndex, cache: Cache) -> DatasetAudit:
    """Audit the images of a cache, whose pairs are all usable.

    Masks are examined at the size of the cache, so that tiny components may be missed.
    Near-duplicates do not depend on that size.
    """
    shapes, areas, readings = cache.shapes, cache.areas, cache.readings
    thumbnails = load_thumbnails(index, cache.path.parent)

    def audit_entry(i: int) -> PairAudit:
        record, image = index.records[i], Image.fromarray(thumbnails[i])
        # Images of different shapes differ even if their squares are equal.
        pair = _examine(record, image, f"{shapes[i]}-{cache.digests[i]}", cache.masks[i])
        return replace(pair, shape=shapes[i], area=float(areas[i]), reading=readings[i])

    return DatasetAudit(index, tuple(map_parallel(audit_entry, range(len(index.records)))))


def digest_full_image(record: Record) -> str:
    """Return a digest of all pixels of an image, whatever its file format."""
    image = read_image(record.image)
    return _digest(np.asarray(image), (image.height, image.width))


def _audit_pair(record: Record) -> PairAudit:
    try:
        # Half the pixels of a large JPEG are enough for its fingerprint; all data are decoded.
        loaded = load_pair(record, THUMB_PX)
        mask, digest = np.asarray(loaded.mask), _digest(np.asarray(loaded.image), loaded.shape)
        pair = _examine(loaded.reading.apply(record), loaded.image, digest, mask)
    except InputError as error:
        return PairAudit(record, problem=escape_unprintable(str(error)))
    assert pair.fingerprint
    thumb = pair.fingerprint.thumb
    small = cv2.resize(mask, thumb.shape, interpolation=cv2.INTER_NEAREST)
    reading = replace(loaded.reading, looks_inverted=looks_inverted(thumb, np.asarray(small)))
    return replace(pair, shape=loaded.shape, area=loaded.area, reading=reading)


def _examine(record: Record, image: Image.Image, digest: str, mask: Pixels) -> PairAudit:
    """Return the properties that a reduced image and the mask show."""
    fingerprint = fingerprint_image(image, digest)
    if fingerprint.is_flat:
        # Reduced to a few pixels, all black frames are equal and a single bright pixel is lost.
        fingerprint = fingerprint._replace(digest=digest_full_image(record))
    labels, _ = cv2.connectedComponents(np.ascontiguousarray(mask), connectivity=8)
    return PairAudit(
        record,
        touches_border=any(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])),
        components=labels - 1,
        fingerprint=fingerprint,
    )


def _digest(pixels: Pixels, shape: tuple[int, int]) -> str:
    return hashlib.blake2b(repr(shape).encode() + pixels.tobytes(), digest_size=8).hexdigest()


def _count_and_list(names: Iterable[str], prefix: str = "") -> str:
    escaped = [escape_unprintable(name) for name in names]
    return f"{len(escaped)}, {prefix}{format_some(escaped)}" if escaped else "0"
