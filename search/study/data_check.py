"""The files and the outcome of `lesionsearch data check`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lesionseg.data.duplicates.leakage import LeakageReport
from lesionseg.errors import InputError
from search.errors import JobFailed

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def check_output_files(json_file: Path | None, sheet: Path | None) -> None:
    """Raise InputError if a file cannot be written; called before an audit that takes minutes."""
    for option, path in (("--json", json_file), ("--sheet", sheet)):
        if path is None:
            continue
        folder = path.absolute().parent
        if path.is_dir():
            raise InputError(f"{option}: {path} is a folder; name a file")
        if not folder.is_dir():
            raise InputError(f"{option}: {path}: there is no folder {folder}; create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{option}: {path} cannot be written: no permission in {folder}")
    if sheet is not None and sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"--sheet: {sheet}: must end in {' or '.join(IMAGE_SUFFIXES)}")


def write_json(report: LeakageReport, path: Path) -> None:
    """Write all findings; raises InputError if the file cannot be written."""
    try:
        path.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json: {path}: cannot be written: {error.strerror}") from error


def raise_on_leaks(report: LeakageReport) -> None:
    """Raise JobFailed if data sets or splits share images, InputError for unusable pairs."""
    leaks = report.describe_leaks()
    if leaks:
        unusable = sum(len(audit.problems) for audit in report.audits.values())
        also = f"; and {unusable} pairs cannot be used" if unusable else ""
        raise JobFailed(f"data check: {leaks}{also}")
    for audit in report.audits.values():
        audit.require_usable()
