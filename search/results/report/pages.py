"""report.html and report.md. All names and messages are escaped.

The HTML page has no external files; the Markdown has the same tables and texts without pictures.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from search.results.documents import render
from search.results.report.search_sections import report_headline
from search.results.report.sections import report_sections

#: Longest side of an overlay in the page, in pixels.
OVERLAY_SIDE = 480


def render_html(facts: Mapping[str, Any], folder: Path) -> str:
    """Return the HTML page. facts: of ``report_facts``; folder: the study's folder."""
    overlays = folder / "final" / "overlays"
    values = _template_values(facts) | {"embed": lambda file: _data_uri(overlays / file)}
    return render("report.html.j2", values)


def render_markdown(facts: Mapping[str, Any]) -> str:
    """Return the report in GitHub's Markdown. facts: of ``report_facts``."""
    return re.sub(r"\n{3,}", "\n\n", render("report.md.j2", _template_values(facts))).strip() + "\n"


def _template_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    headline, sections = report_headline(facts), report_sections(facts)
    return {"facts": facts, "headline": headline, "sections": sections}


def _data_uri(path: Path) -> str | None:
    """Return a picture as JPEG, a fifth of a PNG's size; None if it cannot be read."""
    stream = io.BytesIO()
    try:
        with Image.open(path) as picture:
            picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
            # Chroma subsampling would blur the colours of thin outlines.
            picture.convert("RGB").save(stream, "JPEG", quality=88, subsampling=0)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
