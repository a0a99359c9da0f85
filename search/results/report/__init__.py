"""The report of a study as HTML page, Markdown and JSON, all from the same facts.

Equal records give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lesionseg.errors import InputError, suggest_name
from lesionseg.runtime.files import atomic_write
from search.results.report.pages import render_html, render_markdown
from search.results.report.report_facts import report_facts
from search.storage import trial_records
from search.storage.study_dir import read_run_info
from search.study.opening import load_study

__all__ = ["FORMATS", "parse_formats", "write_report", "write_reports"]

FORMATS = ("html", "md", "json")


def write_report(folder: Path, *, storage: str | None = None) -> Path:
    """Write ``report.html`` to a study's folder and return its path; see ``write_reports``."""
    return write_reports(folder, storage=storage)[0]


def write_reports(
    folder: Path,
    formats: Sequence[str] = ("html",),
    *,
    storage: str | None = None,
    against: Path | None = None,
) -> list[Path]:
    """Write ``report.<format>`` to a study's folder; after an error the old files are unchanged.

    The images of the data set are not needed. A report of an unfinished study says so.

    Args:
        folder: the study's folder.
        formats: of FORMATS, in the order of the returned paths.
        storage: URL of the study's storage; the recorded one by default.
        against: folder of a ``baselines run`` on the same test images, to compare with.

    Raises:
        InputError: the folder contains no study, its storage cannot be opened, or the results in
            ``against`` cannot be compared.
    """
    study, run_info = load_study(folder, storage=storage), read_run_info(folder)
    trials = trial_records.all_trials(study)
    facts = report_facts(folder, study, trials, run_info, against=against, storage=storage)
    renderers = {
        "html": lambda: render_html(facts, folder),
        "md": lambda: render_markdown(facts),
        "json": lambda: json.dumps(facts, indent=1, allow_nan=False) + "\n",
    }
    paths = {each: folder / f"report.{each}" for each in formats}
    for each, path in paths.items():
        atomic_write(path, renderers[each]())
    return list(paths.values())


def parse_formats(text: str) -> list[str]:
    """Return the formats in a text such as ``html,md,json``, without repetitions.

    Raises:
        InputError: a format is unknown, or there is none.
    """
    formats = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for each in formats:
        if each not in FORMATS:
            raise InputError(f"--format: unknown format {each!r} ({suggest_name(each, FORMATS)})")
    if not formats:
        raise InputError(f"--format: must name one of {', '.join(FORMATS)}, got {text!r}")
    return formats
