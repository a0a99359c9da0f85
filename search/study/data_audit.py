"""What a study does about what its pictures share, and what it keeps of it: audit.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.data.cache import Cache
from lesionseg.data.duplicates.audit import audit_cache
from lesionseg.data.duplicates.grouping import (
    find_crossing_groups,
    find_records_to_exclude,
    merge_groups,
)
from lesionseg.data.duplicates.leakage import LeakageReport, find_leaks
from lesionseg.data.index import SPLITS, DatasetIndex
from lesionseg.errors import InputError
from search.errors import JobFailed
from search.storage.study_dir import put

NAME = "audit.json"
#: What a sheet's file may end in.
PICTURES = (".png", ".jpg", ".jpeg")
#: Pictures under several names that a summary lists at most.
MOST = 20


@dataclass(frozen=True)
class StudyAudit:
    """What the audit of a study's pictures says, and what follows from it.

    groups: of the records, by name, that were put into another group. left_out: names of records
    that are used nowhere.
    """

    found: LeakageReport
    groups: Mapping[str, str]
    left_out: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON: ``LeakageReport.to_dict`` and what was done."""
        return self.found.to_dict() | {
            "regrouped": dict(self.groups),
            "left_out": sorted(self.left_out),
        }


def audit_study(
    index: DatasetIndex, cache: Cache, *, official: bool, leaks: str, pooled: bool = False
) -> StudyAudit:
    """Audits the pictures of a study that is founded, from its cache.

    official: its split is the data set's own. leaks: refuse, drop or allow, as data.leaks says.
    pooled: folds are dealt of train and val together: the border between them is none.
    Near-duplicates are put into one group. InputError where official splits share images and that is
    refused.
    """
    if pooled:
        one = {"val": "train"}
        records = (replace(r, split=one.get(r.split or "", r.split)) for r in index.records)
        index = replace(index, records=tuple(records))
    found = find_leaks({"": audit_cache(index, cache)})
    crossed = find_crossing_groups(index.records, found.clusters) if official else []
    if crossed and leaks == "refuse":
        shown = "; ".join(map(str, crossed[:3]))
        more = f"; and {len(crossed) - 3} more" if len(crossed) > 3 else ""
        many = "pictures lie" if len(crossed) > 1 else "picture lies"
        raise InputError(
            f"data: {len(crossed)} {many} in two official splits: {shown}{more}; look at them with "
            f"`lesionsearch data check DIR --sheet FILE.png`; data.leaks=drop leaves out the "
            f"copies that are less held out, with their groups, data.leaks=allow keeps them"
        )
    left_out = find_records_to_exclude(crossed) if leaks == "drop" else set()
    used = [r for r in index.records if r.name not in left_out]
    groups = merge_groups(used, found.clusters, official=official)
    return StudyAudit(found, groups, frozenset(left_out))


def check_output_files(json_: Path | None, sheet: Path | None) -> None:
    """InputError where a file cannot be written that is to tell of an audit.

    Asked before it: of tens of thousands of pictures an audit takes minutes.
    """
    for option, path in (("--json", json_), ("--sheet", sheet)):
        if path is None:
            continue
        folder = path.absolute().parent
        if path.is_dir():
            raise InputError(f"{option}: {path} is a folder; name a file")
        if not folder.is_dir():
            raise InputError(f"{option}: {path}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{option}: {path} cannot be written: no permission in {folder}")
    if sheet is not None and sheet.suffix.lower() not in PICTURES:
        raise InputError(f"--sheet: {sheet}: must end in {' or '.join(PICTURES)}")


def write_json(found: LeakageReport, path: Path) -> None:
    """Everything that an audit found; InputError where the file cannot be written."""
    try:
        path.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json: {path}: cannot be written: {error.strerror}") from error


def raise_on_leaks(found: LeakageReport) -> None:
    """Failed where data sets or splits share pictures; InputError where pairs cannot be used."""
    broken = [problem for each in found.audits.values() for problem in each.problems]
    told = found.describe_leaks()
    if told:
        also = f"; and {len(broken)} pairs cannot be used" if broken else ""
        raise JobFailed(f"data check: {told}{also}")
    for each in found.audits.values():
        each.require_usable()


def write_audit(folder: Path, audited: StudyAudit) -> None:
    """Keeps the audit with the study."""
    put(folder / NAME, json.dumps(audited.to_dict(), indent=1))


def read_audit(folder: Path) -> dict[str, Any] | None:
    """The audit of a study's folder; None where it has none."""
    path = folder / NAME
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def summary(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a report says of the audit; None where the folder has none.

    parts: names of the records of each part of the split. ``copies``: pictures under several
    names, ``exact`` of them equal pixel by pixel; ``across``: those in more than one part;
    ``names``: the first few of these, else of all; ``left_out``: records that are used nowhere,
    being copies of others.
    """
    found = read_audit(folder)
    if found is None:
        return None
    used = {name: part for part in SPLITS for name in parts[part]}
    sets = [[p["name"] for p in each["images"]] for each in found["duplicates"]]
    across = [names for names in sets if len({used[n] for n in names if n in used}) > 1]
    return {
        "copies": len(sets),
        "exact": sum(each["exact"] for each in found["duplicates"]),
        "across": len(across),
        "names": (across or sets)[:MOST],
        "left_out": len(found["left_out"]),
    }


def told(summed: Mapping[str, Any] | None) -> str | None:
    """The summary in one line for people; None where there is nothing to say."""
    if not summed or not summed["copies"]:
        return None
    names = ", ".join(" = ".join(each) for each in summed["names"][:3])
    line = f"{summed['copies']} pictures lie under several names, such as {names}; "
    if summed["across"]:
        line += f"{summed['across']} of them are in more than one part, as data.leaks allows"
    else:
        line += "those that are used are one group each"
    left_out = summed["left_out"]
    if not left_out:
        return line
    return f"{line}; {left_out} pictures of training or validation are left out for them"
