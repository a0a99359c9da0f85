"""A summary of a study's images, and its file data.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NotRequired

import numpy as np
from pydantic import AfterValidator, FiniteFloat
from typing_extensions import TypedDict

from lesionseg.data.cache import Cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_checks import describe_readings, warn_of_inverted
from lesionseg.data.pairs import SPLITS, Record
from lesionseg.data.split import Split, find_positions
from lesionseg.runtime.files import atomic_write
from search.storage.stored_files import Count, Name, read_json_file, require_keys
from search.storage.study_dir import rewrite_hint

SUMMARY_FILE = "data.json"
#: Edges of the histogram bins of lesion area, as a fraction of the image.
EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
#: Largest number of image sizes and of duplicates that are listed.
MAX_LISTED = 20


class AreaSummary(TypedDict):
    """Lesion area of the images of a part: quantiles, and images by bin of EDGES."""

    p5: FiniteFloat
    median: FiniteFloat
    p95: FiniteFloat
    counts: list[Count]


class PartSummary(TypedDict):
    """A part of the split. empty, full: number of masks without and with lesion only."""

    images: Count
    groups: Count
    area: AreaSummary
    empty: Count
    full: Count


class ImageSize(TypedDict):
    """A size in pixels, and the number of images of this size."""

    height: Count
    width: Count
    images: Count


class ImageSizes(TypedDict):
    """kinds: number of different sizes. most: the most frequent ones."""

    kinds: Count
    most: list[ImageSize]


class Duplicates(TypedDict):
    """Images under several names, and how many of them are in several parts."""

    sets: Count
    leaks: Count
    names: list[list[Name]]


class SetSummary(TypedDict):
    """A data set, its pairs in all and by part. conflicting: see ``summarize_data``."""

    name: Name
    pairs: Count
    conflicting: Count
    train: Count
    val: Count
    test: Count


class DataSummary(TypedDict):
    """The content of data.json; see ``summarize_data``."""

    layout: str
    pairs: Count
    used: Count
    parts: Annotated[dict[str, PartSummary], require_keys(*SPLITS)]
    edges: list[FiniteFloat]
    sizes: ImageSizes
    duplicates: Duplicates
    groups_in_several_parts: Count
    thresholded: Count
    notes: NotRequired[list[str]]
    warnings: NotRequired[list[str]]
    sets: NotRequired[list[SetSummary]]


def _check_bins(summary: DataSummary) -> DataSummary:
    bins = len(summary["edges"]) - 1
    if any(len(part["area"]["counts"]) != bins for part in summary["parts"].values()):
        raise ValueError("edges and counts must be of the same bins")
    return summary


_Checked = Annotated[DataSummary, AfterValidator(_check_bins)]


def write_data_summary(folder: Path, index: DatasetIndex, cache: Cache, split: Split) -> None:
    """Write data.json."""
    summary = summarize_data(index, cache, split)
    atomic_write(folder / SUMMARY_FILE, json.dumps(summary, indent=1))


def summarize_data(index: DatasetIndex, cache: Cache, split: Split) -> DataSummary:
    """Summarize the images of a study.

    Args:
        index: The data set.
        cache: Its cached images.
        split: The study's split.

    Returns:
        The content of data.json. ``parts``: by part of the split the number of images, groups,
        empty and full masks, and quantiles and histogram of lesion area. ``sizes``: height, width
        and number of images. ``duplicates``: images with identical pixels under several names, and
        how many of these are in several parts (``leaks``). ``thresholded``: number of masks that
        were not binary. ``sets``: for several data sets the ``name``, the number of ``pairs``, in
        all and by part, and the number of pairs whose lesion has another official part in another
        data set (``conflicting``).
    """
    groups = {record.name: record.group for record in index.records}
    parts = {part: getattr(split, part) for part in SPLITS}
    part_of = {name: part for part, names in parts.items() for name in names}
    for fold in split.folds:  # with limits, the folds may hold images that the parts do not
        part_of = dict.fromkeys((*fold.train, *fold.val), "train") | part_of
    shapes = dict(zip(cache.names, cache.shapes, strict=True))
    masks = [mask for mask in cache.list_masks(index.records) if mask.record.name in part_of]
    return {
        "layout": index.layout,
        "pairs": len(index.records),
        "used": len(part_of),
        "parts": {part: _summarize_part(names, groups, cache) for part, names in parts.items()},
        "edges": list(EDGES),
        "sizes": _count_sizes([shapes[name] for name in part_of]),
        "duplicates": _find_duplicates(cache, part_of),
        "groups_in_several_parts": _count_split_groups(part_of, groups),
        "thresholded": len(set(cache.thresholded) & part_of.keys()),
        "notes": describe_readings(masks),
        "warnings": warn_of_inverted(masks),
        "sets": _count_sets(index.records, part_of),
    }


def read_data_summary(folder: Path) -> DataSummary | None:
    """Read data.json of a study's folder; None if there is none."""
    path = folder / SUMMARY_FILE
    return read_json_file(path, _Checked, rewrite_hint(folder)) if path.is_file() else None


def _summarize_part(names: Sequence[str], groups: Mapping[str, str], cache: Cache) -> PartSummary:
    areas = cache.areas[find_positions(names, cache.names)]
    counts, _ = np.histogram(areas, EDGES)
    p5, median, p95 = np.percentile(areas, [5, 50, 95]).tolist()
    return {
        "images": len(names),
        "groups": len({groups[name] for name in names}),
        "area": {"p5": p5, "median": median, "p95": p95, "counts": counts.tolist()},
        "empty": int((areas == 0).sum()),
        "full": int((areas == 1).sum()),
    }


def _count_sizes(shapes: Sequence[tuple[int, int]]) -> ImageSizes:
    counts = Counter(shapes)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "kinds": len(counts),
        "most": [{"height": h, "width": w, "images": n} for (h, w), n in ordered[:MAX_LISTED]],
    }


def _find_duplicates(cache: Cache, part_of: Mapping[str, str]) -> Duplicates:
    by_digest: dict[str, list[str]] = {}
    for name, digest in zip(cache.names, cache.digests, strict=True):
        if name in part_of:
            by_digest.setdefault(digest, []).append(name)
    duplicates = [sorted(names) for names in by_digest.values() if len(names) > 1]
    leaks = [names for names in duplicates if len({part_of[name] for name in names}) > 1]
    return {
        "sets": len(duplicates),
        "leaks": len(leaks),
        "names": sorted(leaks or duplicates)[:MAX_LISTED],
    }


def _count_sets(records: Sequence[Record], part_of: Mapping[str, str]) -> list[SetSummary]:
    names = sorted({record.dataset for record in records})
    if len(names) < 2:
        return []
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.split:
            splits.setdefault(record.group, set()).add(record.split)
    rows = []
    for name in names:
        members = [record for record in records if record.dataset == name]
        counts = Counter(part_of[r.name] for r in members if r.name in part_of)
        conflicting = sum(len(splits.get(r.group, ())) > 1 for r in members)
        rows.append(
            SetSummary(
                name=name,
                pairs=len(members),
                conflicting=conflicting,
                train=counts["train"],
                val=counts["val"],
                test=counts["test"],
            )
        )
    return rows


def _count_split_groups(part_of: Mapping[str, str], groups: Mapping[str, str]) -> int:
    """Count groups in several parts, of which a correct split has none."""
    parts: dict[str, set[str]] = {}
    for name, part in part_of.items():
        parts.setdefault(groups[name], set()).add(part)
    return sum(len(group_parts) > 1 for group_parts in parts.values())
