"""report.md: the tables of the report in GitHub's Markdown, without pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from search.results.documents import render
from search.results.report.html_page import template_values


def render_markdown(facts: Mapping[str, Any]) -> str:
    """Return the report as Markdown. facts: of ``report_facts``."""
    text = render("report.md.j2", template_values(facts))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
