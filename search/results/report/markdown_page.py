"""report.md: the facts as Markdown tables, for the appendix of a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from search.results.report.html_page import environment, view

#: What would be markup at the place of a name: of Markdown, of HTML, of a table.
_MARKUP = re.compile(r"([\\`*_\[\]#|<>~$])")


def markdown(facts: Mapping[str, Any]) -> str:
    """The report without pictures, in GitHub's Markdown."""
    page = environment(autoescape=False)
    page.filters["text"] = plain_text
    text = page.get_template("report.md.j2").render(view(facts))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def plain_text(name: object) -> str:
    """A name or a message in one line, none of it taken for markup."""
    return _MARKUP.sub(r"\\\1", " ".join(str(name).split()))
