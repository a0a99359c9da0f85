"""Tables and templates of the report and the model card."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from search.results import formatting

_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")

#: A cell's text, or a pair of text and explanation.
Cell = str | tuple[str, str]


@dataclass(frozen=True)
class Table:
    """A table that is written as HTML or Markdown.

    Attributes:
        id: of the HTML element.
        columns: title by title; one that ends in ">" is a column of numbers, aligned right.
        rows: cells; the first one of a row is its heading.
        caption: sentences about the table.
        highlighted: index of the row that is marked with a star.
        wide: whether the table is as wide as the page.
    """

    id: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    highlighted: int | None = None
    wide: bool = False

    def to_markdown(self) -> str:
        """Return the table and its caption as Markdown; all text is escaped."""
        titles = [title.removesuffix(">") for title in self.columns]
        rules = ["---:" if title.endswith(">") else "---" for title in self.columns]
        rows = [list(map(_markdown_cell, row)) for row in self.rows]
        if self.highlighted is not None:
            rows[self.highlighted][0] += " ★"
        lines = [f"| {' | '.join(row)} |" for row in [titles, rules, *rows]]
        return "\n".join([*lines, "", escape_markdown(self.caption)] if self.caption else lines)


def escape_markdown(text: object) -> str:
    """Return a text in one line, shown literally by Markdown: no markup, HTML or table cells."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Return YAML with the innermost lists and mappings on one line each."""
    dumped: str = yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=None, width=60)
    return dumped


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template of ``search/results/templates``; HTML is escaped, Markdown is not."""
    environment = Environment(
        loader=PackageLoader("search.results"),
        autoescape=".html." in template,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "score": formatting.format_score,
        "difference": formatting.format_difference,
        "integer": formatting.format_integer,
        "percent": formatting.format_percent,
        "duration": formatting.format_duration,
        "markdown": escape_markdown,
    }
    environment.globals |= {
        "count": formatting.format_count,
        "interval": formatting.format_interval,
    }
    return environment.get_template(template).render(values)


def _markdown_cell(cell: Cell) -> str:
    text, explanation = (cell, "") if isinstance(cell, str) else cell
    return escape_markdown(f"{text} ({explanation})" if explanation else text)
