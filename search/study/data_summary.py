"""data.json: what a study's pictures are, written once so that a report needs none of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.data.cache import Cache
from lesionseg.data.index import SPLITS, DatasetIndex, Record
from lesionseg.data.split import Split, positions

NAME = "data.json"
#: Ends of the bins in which lesions' shares of their pictures are counted.
EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
#: Sizes and doubles that are listed at most.
MOST = 20


def summarize_data(index: DatasetIndex, cache: Cache, split: Split) -> dict[str, Any]:
    """What there is, part by part; fit for JSON.

    ``parts``: of each part of the split its images, groups, empty and full masks, and of the
    lesion's share of the picture the quantiles and the counts between EDGES. ``sizes``: height,
    width and how many pictures have them, None where the cache does not say. ``doubles``: pictures
    of the very same pixels under several names, and how many of these lie in several parts
    (``leaks``); None where that is not known. ``thresholded``: masks that were not binary.
    ``sets``: of each data set its ``name``, its ``pairs``, how many of them are in each part, and
    how many show a lesion that another set's own parts have elsewhere (``disputed``); none where
    there is only one data set.
    """
    groups = {r.name: r.group for r in index.records}
    parts = {part: getattr(split, part) for part in SPLITS}
    used = {name: part for part, names in parts.items() for name in names}
    for fold in split.folds:  # whose limits may leave other images than those of the first one
        used |= {name: "train" for name in (*fold.train, *fold.val) if name not in used}
    shapes = None if cache.shapes is None else dict(zip(cache.names, cache.shapes, strict=True))
    return {
        "layout": index.layout,
        "pairs": len(index.records),
        "used": len(used),
        "parts": {part: _part(names, groups, cache) for part, names in parts.items()},
        "edges": list(EDGES),
        "sizes": None if shapes is None else _sizes([shapes[name] for name in used]),
        "doubles": None if cache.digests is None else _doubles(cache, used),
        "groups_in_several_parts": _torn(used, groups),
        "thresholded": len(set(cache.thresholded) & used.keys()),
        "sets": _sets(index.records, used),
    }


def read_data_summary(folder: Path) -> dict[str, Any] | None:
    """The card of a study's folder; None where it has none."""
    path = folder / NAME
    if not path.is_file():
        return None
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


def _part(names: Sequence[str], groups: Mapping[str, str], cache: Cache) -> dict[str, Any]:
    areas = cache.areas[positions(names, cache.names)]
    counted, _ = np.histogram(areas, EDGES)
    low, middle, high = np.percentile(areas, [5, 50, 95]).tolist()
    return {
        "images": len(names),
        "groups": len({groups[name] for name in names}),
        "area": {"p5": low, "median": middle, "p95": high, "counts": counted.tolist()},
        "empty": int((areas == 0).sum()),
        "full": int((areas == 1).sum()),
    }


def _sizes(shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The commonest; ``kinds``: how many different ones there are."""
    counted = Counter(shapes)
    listed = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST]
    return {
        "kinds": len(counted),
        "most": [{"height": h, "width": w, "images": n} for (h, w), n in listed],
    }


def _doubles(cache: Cache, used: Mapping[str, str]) -> dict[str, Any]:
    same: dict[str, list[str]] = {}
    for name, digest in zip(cache.names, cache.digests or (), strict=True):
        if name in used:
            same.setdefault(digest, []).append(name)
    found = [sorted(names) for names in same.values() if len(names) > 1]
    leaks = [names for names in found if len({used[name] for name in names}) > 1]
    return {"sets": len(found), "leaks": len(leaks), "names": sorted(leaks or found)[:MOST]}


def _sets(records: Sequence[Record], used: Mapping[str, str]) -> list[dict[str, Any]]:
    names = sorted({r.set for r in records})
    own: dict[str, set[str]] = {}
    for r in records:
        if r.split:
            own.setdefault(r.group, set()).add(r.split)
    rows = []
    for name in names if len(names) > 1 else ():
        mine = [r for r in records if r.set == name]
        where = Counter(used[r.name] for r in mine if r.name in used)
        disputed = sum(len(own.get(r.group, ())) > 1 for r in mine)
        rows.append(
            {"name": name, "pairs": len(mine), "disputed": disputed}
            | {part: where[part] for part in SPLITS}
        )
    return rows


def _torn(used: Mapping[str, str], groups: Mapping[str, str]) -> int:
    """Groups with images in more than one part; the split promises that there are none."""
    where: dict[str, set[str]] = {}
    for name, part in used.items():
        where.setdefault(groups[name], set()).add(part)
    return sum(len(parts) > 1 for parts in where.values())
