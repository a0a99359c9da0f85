"""The report of a study as HTML page, Markdown and JSON, all from the same facts.

Equal records give equal bytes.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lesionseg.errors import InputError, suggest_name
from lesionseg.runtime.files import atomic_write
from search.errors import JobFailed
from search.results.charts.svg import render_chart
from search.results.documents import render
from search.results.report.headline import report_headline
from search.results.report.report_facts import report_facts
from search.results.report.sections import report_sections

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

    formats: of FORMATS, in the order of the returned paths. JobFailed if a file cannot be written.
    Other arguments and errors: see ``report_facts``.
    """
    facts = report_facts(folder, against=against, storage=storage)
    values = {
        "facts": facts,
        "headline": report_headline(facts),
        "sections": report_sections(facts),
        "render_chart": render_chart,
        "embed": lambda file: _embed_picture(folder / "final" / "overlays" / file),
    }
    renderers = {
        "html": lambda: render("report.html.j2", values),
        "md": lambda: re.sub(r"\n{3,}", "\n\n", render("report.md.j2", values)).strip() + "\n",
        "json": lambda: json.dumps(facts, indent=1, allow_nan=False) + "\n",
    }
    paths = {each: folder / f"report.{each}" for each in formats}
    for each, path in paths.items():
        # File names may have bytes that are not UTF-8, which HTML cannot show.
        text = renderers[each]().encode(errors="replace")
        try:
            atomic_write(path, text, unique=True)  # several processes may write it
        except OSError as error:
            reason = error.strerror or error
            raise JobFailed(f"report: {path}: cannot be written: {reason}") from error
    return list(paths.values())


def parse_formats(text: str) -> list[str]:
    """Return the formats in a text such as ``html,md,json``, without repetitions.

    Raises:
        InputError: a format is unknown.
    """
    formats = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for each in formats:
        if each not in FORMATS:
            raise InputError(f"--format: unknown format {each!r} ({suggest_name(each, FORMATS)})")
    return formats


def _embed_picture(path: Path) -> str | None:
    """Return a picture as data URI; None if it cannot be read."""
    stream = io.BytesIO()
    try:
        with Image.open(path) as picture:
            # A JPEG has a fifth of a PNG's size. Subsampling would blur thin outlines' colours.
            picture.convert("RGB").save(stream, "JPEG", quality=88, subsampling=0)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
