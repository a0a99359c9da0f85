"""Near-duplicates among the images of a study, and the outcome of `lesionsearch data check`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lesionseg.data.cache import Cache
from lesionseg.data.duplicates.audit import audit_cache
from lesionseg.data.duplicates.grouping import (
    find_crossing_groups,
    find_records_to_exclude,
    merge_groups,
)
from lesionseg.data.duplicates.leakage import LeakageReport, find_leaks
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_checks import require_lesions
from lesionseg.data.pairs import SPLITS
from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_write
from search.errors import JobFailed
from search.spec.study_spec import DataSpec
from search.storage.stored_files import Count, Name, read_json_file
from search.storage.study_dir import rewrite_hint

FILE_NAME = "audit.json"
#: Largest number of duplicates that a summary names.
MAX_NAMED = 20


@dataclass(frozen=True)
class StudyAudit:
    """The near-duplicates of a study and what follows from them.

    groups: new groups by the names of the records.
    excluded: names of the records that are not used.
    """

    report: LeakageReport
    groups: Mapping[str, str]
    excluded: frozenset[str]


def audit_study(index: DatasetIndex, cache: Cache, data: DataSpec, *, official: bool) -> StudyAudit:
    """Find near-duplicates, put them into one group and resolve leaks between official splits.

    Args:
        index: The data set.
        cache: Its cached images.
        data: The section ``data`` of the study's file.
        official: Whether the study uses the official split.

    Raises:
        InputError: If in a data set no mask shows both lesion and skin, or official splits share
            images and ``data.leaks`` is ``refuse``.
    """
    if data.split.kfold:  # train and val are one part
        records = (replace(r, split="train") if r.split == "val" else r for r in index.records)
        index = replace(index, records=tuple(records))
    audit = audit_cache(index, cache)
    require_lesions(audit.masks)
    report = find_leaks({"": audit})
    crossing = find_crossing_groups(index.records, report.clusters) if official else []
    if crossing and data.leaks == "refuse":
        examples = "; ".join(map(str, crossing[:3]))
        more = f"; and {len(crossing) - 3} more" if len(crossing) > 3 else ""
        count = "1 image is" if len(crossing) == 1 else f"{len(crossing)} images are"
        raise InputError(
            f"data: {count} in two official splits: {examples}{more}; view them with "
            f"`lesionsearch data check DIR --sheet FILE.png`; data.leaks=drop leaves the copies in "
            f"train or val out, with their groups; data.leaks=allow keeps them"
        )
    excluded = find_records_to_exclude(crossing) if data.leaks == "drop" else set()
    used = [record for record in index.records if record.name not in excluded]
    groups = merge_groups(used, report.clusters, official=official)
    return StudyAudit(report, groups, frozenset(excluded))


class AuditedImage(TypedDict):
    """An image of a cluster; it has more keys."""

    name: Name


class AuditedCluster(TypedDict):
    """Near-duplicates. exact: whether all have equal pixels."""

    exact: bool
    images: list[AuditedImage]


class StoredAudit(TypedDict):
    """The keys of audit.json that are read; docs/data.md describes all keys."""

    duplicates: list[AuditedCluster]
    excluded: list[Name]


class AuditSummary(TypedDict):
    """The near-duplicates of a study in numbers.

    duplicates: number of images with several names.
    exact: those identical pixel by pixel.
    leaks: those in several parts.
    names: the first leaks, or the first duplicates if there are none.
    excluded: number of records that are not used.
    """

    duplicates: Count
    exact: Count
    leaks: Count
    names: list[list[Name]]
    excluded: Count


def write_audit(folder: Path, audit: StudyAudit) -> None:
    """Write the audit to a study's folder."""
    plain = {"groups": dict(audit.groups), "excluded": sorted(audit.excluded)}
    atomic_write(folder / FILE_NAME, json.dumps(audit.report.to_dict() | plain, indent=1))


def read_audit(folder: Path) -> StoredAudit | None:
    """Read the audit of a study's folder; None if there is none."""
    path = folder / FILE_NAME
    return read_json_file(path, StoredAudit, rewrite_hint(folder)) if path.is_file() else None


def is_damaged(folder: Path) -> bool:
    """Return whether a study's folder has an audit that cannot be read."""
    try:
        read_audit(folder)
    except InputError:
        return True
    return False


def summarize_audit(folder: Path, split: Mapping[str, Any]) -> AuditSummary | None:
    """Summarize the audit of a study's folder; None if there is none.

    Args:
        folder: The study's folder.
        split: Names of the records by part.

    Raises:
        InputError: If the file is damaged.
    """
    audit = read_audit(folder)
    if audit is None:
        return None
    part_of = {name: part for part in SPLITS for name in split[part]}
    clusters = [[image["name"] for image in c["images"]] for c in audit["duplicates"]]
    leaks = [c for c in clusters if len({part_of[name] for name in c if name in part_of}) > 1]
    return {
        "duplicates": len(clusters),
        "exact": sum(cluster["exact"] for cluster in audit["duplicates"]),
        "leaks": len(leaks),
        "names": (leaks or clusters)[:MAX_NAMED],
        "excluded": len(audit["excluded"]),
    }


def describe_audit(summary: AuditSummary | None) -> str | None:
    """Describe a summary in one line; None without duplicates."""
    if not summary or not summary["duplicates"]:
        return None
    names = ", ".join(" = ".join(cluster) for cluster in summary["names"][:3])
    line = f"{summary['duplicates']} images have several names, such as {names}; "
    if summary["leaks"]:
        line += f"{summary['leaks']} of them are in more than one part, as data.leaks allows"
    else:
        line += "the copies in use are in one group each"
    excluded = summary["excluded"]
    return f"{line}; {excluded} images of train or val are left out" if excluded else line


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def check_output_files(json_file: Path | None, sheet: Path | None) -> None:
    """Raise InputError if a file cannot be written; called before an audit that takes minutes."""
    for option, path in (("--json", json_file), ("--sheet", sheet)):
        if path and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK)):
            raise InputError(
                f"{option}: {path} cannot be written; name a file in an existing, writable folder"
            )
    if sheet is not None and sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"--sheet: {sheet}: must end in {' or '.join(IMAGE_SUFFIXES)}")


def raise_on_leaks(report: LeakageReport) -> None:
    """Raise JobFailed if data sets or splits share images, InputError for unusable pairs."""
    leaks = report.describe_leaks()
    if leaks:
        unusable = sum(len(audit.problems) for audit in report.audits.values())
        also = f"; and {unusable} pairs cannot be used" if unusable else ""
        raise JobFailed(f"data check: {leaks}{also}")
    for audit in report.audits.values():
        audit.require_usable()
