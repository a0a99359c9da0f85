"""Blocks of a report, and the templates of the report and the model card."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from search.results import formatting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$])")

#: A cell's text, or a pair of text and explanation.
Cell = str | tuple[str, str]


@dataclass(frozen=True)
class Table:
    """A table that is written as HTML or, with all text escaped, as Markdown.

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
    kind = "table"

    def to_markdown(self) -> str:
        titles = [title.removesuffix(">") for title in self.columns]
        rules = ["---:" if title.endswith(">") else "---" for title in self.columns]
        rows = [list(map(_markdown_cell, row)) for row in self.rows]
        if self.highlighted is not None:
            rows[self.highlighted][0] += " ★"
        lines = [f"| {' | '.join(row)} |" for row in [titles, rules, *rows]]
        return "\n".join([*lines, "", escape_markdown(self.caption)] if self.caption else lines)


@dataclass(frozen=True)
class Text:
    """A paragraph, a heading or preformatted text. kind: note, warning, heading or code.

    id: of the HTML element of a code.
    """

    text: str
    kind: str = "note"
    id: str = ""

    def to_markdown(self) -> str:
        if self.kind == "code":
            return "\n".join(f"    {line}" for line in self.text.splitlines())
        return ("### " if self.kind == "heading" else "") + escape_markdown(self.text)


@dataclass(frozen=True)
class Charts:
    """Charts with captions, side by side; one alone is as wide as the page. Only in HTML.

    A chart is a function that draws in a figure and returns an alternative text.
    """

    charts: Sequence[tuple[Callable[[Figure], str], str]]
    kind = "charts"


@dataclass(frozen=True)
class Pictures:
    """Overlays with name, file and Dice. Only in HTML."""

    pictures: Sequence[Mapping[str, Any]]
    kind = "pictures"


Block = Table | Text | Charts | Pictures


class Section(NamedTuple):
    """A section of a report. id: of its heading in HTML."""

    id: str
    title: str
    blocks: Sequence[Block]


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
    environment.filters |= {"score": formatting.format_number, "markdown": escape_markdown}
    environment.globals["interval"] = formatting.format_interval
    return environment.get_template(template).render(values)


def _markdown_cell(cell: Cell) -> str:
    text, explanation = (cell, "") if isinstance(cell, str) else cell
    return escape_markdown(f"{text} ({explanation})" if explanation else text)
