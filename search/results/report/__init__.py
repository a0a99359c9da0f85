"""What a study found and how: as a page, as Markdown and as JSON, all of the same facts.

The same records give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lesionseg.errors import InputError, nearest
from search.results.formatting import DEFINITIONS
from search.results.report.html_page import html
from search.results.report.markdown_page import markdown
from search.results.report.report_facts import report_facts
from search.storage import trial_records
from search.study.lifecycle import load_study

__all__ = ["DEFINITIONS", "FORMATS", "parse_formats", "write_report", "write_reports"]

FORMATS = ("html", "md", "json")


def write_report(folder: Path, *, storage: str | None = None) -> Path:
    """Writes ``report.html`` of a study's folder; its path. See ``write_reports``."""
    return write_reports(folder, storage=storage)[0]


def write_reports(
    folder: Path,
    formats: Sequence[str] = ("html",),
    *,
    storage: str | None = None,
    against: Path | None = None,
) -> list[Path]:
    """Writes ``report.<format>`` of a study's folder, each whole or not at all; their paths.

    formats: of FORMATS. against: the folder of a ``baselines run`` on the same test images, to compare
    the tested network with. Needs no picture of the data. A study that is not finished, or without
    a complete trial, gets a report that says so.
    Raises InputError where the folder holds no study, its storage cannot be opened, or ``against``
    cannot be compared with.
    """
    study, about = load_study(folder, storage=storage)
    known = trial_records.all_trials(study)
    facts = report_facts(folder, study, known, about, against=against, storage=storage)
    make = {
        "html": lambda: html(facts, known, folder),
        "md": lambda: markdown(facts),
        "json": lambda: json.dumps(facts, indent=1, allow_nan=False) + "\n",
    }
    return [_put(folder / f"report.{each}", make[each]()) for each in formats]


def parse_formats(text: str) -> list[str]:
    """The formats of ``html,md,json``, each once; InputError where one is unknown or none is."""
    wanted = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for each in wanted:
        if each not in FORMATS:
            raise InputError(f"--format: unknown format {each!r} ({nearest(each, FORMATS)})")
    if not wanted:
        raise InputError(f"--format: must name one of {', '.join(FORMATS)}, got {text!r}")
    return wanted


def _put(path: Path, text: str) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
