"""The files of a study's folder, for people; workers read the same facts from the storage.

``runs/<name>/`` holds study.yaml (the spec), run.json (where its data and its storage are),
split.json, data.json, audit.json, study.db unless another storage is used, trials/<n>/, final/ and
report.html.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from sqlalchemy.engine import URL

from lesionseg.data.cache import Cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.merge import Roots, list_roots
from lesionseg.data.pairs import SPLITS, Record
from lesionseg.data.split import Split, find_positions
from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_write
from search.storage.database import mask_password, sqlite_url
from search.storage.study_dir import read_json
from search.storage.trial_records import StudyAttr


def write_study_files(
    study: optuna.Study, folder: Path, url: URL, data: Roots | None, layout: str | None = None
) -> None:
    """Write study.yaml, split.json and, last, run.json, which makes the folder a study's."""
    run_info = {
        "study": study.study_name,
        "storage": None if url == sqlite_url(folder) else mask_password(url),
        "data": None if data is None else _format_roots(data),
        "layout": layout,
        "version": version("lesionsearch"),
    }
    attrs = study.user_attrs
    atomic_write(folder / "study.yaml", yaml.safe_dump(attrs[StudyAttr.SPEC], sort_keys=False))
    atomic_write(folder / "split.json", json.dumps(attrs[StudyAttr.SPLIT], indent=1))
    atomic_write(folder / "run.json", json.dumps(run_info, indent=1))


def write_data_summary(folder: Path, index: DatasetIndex, cache: Cache, split: Split) -> None:
    """Write data.json."""
    summary = summarize_data(index, cache, split)
    atomic_write(folder / SUMMARY_FILE, json.dumps(summary, indent=1))


def recorded_roots(run_info: Mapping[str, Any]) -> Roots:
    """Return the folders of the images from run.json; raises InputError if it has none."""
    data = run_info["data"]
    if data is None:
        raise InputError("--data: give the folder of the images on this host")
    return Path(data) if isinstance(data, str) else tuple(map(Path, data))


def _format_roots(data: Roots) -> str | list[str]:
    paths = sorted(str(root.resolve()) for root in list_roots(data))
    return paths[0] if len(paths) == 1 else paths


SUMMARY_FILE = "data.json"
#: Edges of the histogram bins of lesion area, as a fraction of the image.
EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
#: Largest number of image sizes and of duplicates that are listed.
MAX_LISTED = 20


def summarize_data(index: DatasetIndex, cache: Cache, split: Split) -> dict[str, Any]:
    """Summarize the images of a study.

    Args:
        index: The data set.
        cache: Its cached images.
        split: The study's split.

    Returns:
        A dict for JSON. ``parts``: by part of the split the number of images, groups, empty and
        full masks, and quantiles and histogram of lesion area. ``sizes``: height, width and number
        of images. ``duplicates``: images with identical pixels
        under several names, and how many of these are in several parts (``leaks``).
        ``thresholded``: number of masks that were not binary. ``sets``: for
        several data sets the ``name``, the number of ``pairs``, in all and by part, and the number
        of pairs whose lesion has another official part in another data set (``conflicting``).
    """
    groups = {record.name: record.group for record in index.records}
    parts = {part: getattr(split, part) for part in SPLITS}
    part_of = {name: part for part, names in parts.items() for name in names}
    for fold in split.folds:  # with limits, the folds may hold images that the parts do not
        part_of = dict.fromkeys((*fold.train, *fold.val), "train") | part_of
    shapes = dict(zip(cache.names, cache.shapes, strict=True))
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
        "sets": _count_sets(index.records, part_of),
    }


def read_data_summary(folder: Path) -> dict[str, Any] | None:
    """Read data.json of a study's folder; None if there is none."""
    return read_json(folder / SUMMARY_FILE)


def _summarize_part(
    names: Sequence[str], groups: Mapping[str, str], cache: Cache
) -> dict[str, Any]:
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


def _count_sizes(shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """``kinds``: number of different sizes. ``most``: the most frequent ones."""
    counts = Counter(shapes)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "kinds": len(counts),
        "most": [{"height": h, "width": w, "images": n} for (h, w), n in ordered[:MAX_LISTED]],
    }


def _find_duplicates(cache: Cache, part_of: Mapping[str, str]) -> dict[str, Any]:
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


def _count_sets(records: Sequence[Record], part_of: Mapping[str, str]) -> list[dict[str, Any]]:
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
        row = {"name": name, "pairs": len(members), "conflicting": conflicting}
        rows.append(row | {part: counts[part] for part in SPLITS})
    return rows


def _count_split_groups(part_of: Mapping[str, str], groups: Mapping[str, str]) -> int:
    """Count groups in several parts, of which a correct split has none."""
    parts: dict[str, set[str]] = {}
    for name, part in part_of.items():
        parts.setdefault(groups[name], set()).add(part)
    return sum(len(group_parts) > 1 for group_parts in parts.values())
