"""``lesionsearch options``: every option of the search with its parameters and ranges."""

from __future__ import annotations

from typing import Annotated

import typer


def options(
    family: Annotated[str | None, typer.Argument(help="One family.", show_default="all")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/options.md.")] = False,
) -> None:
    """List every option of the search with its parameters and ranges."""
    from rich.markdown import Markdown

    from lesionseg.errors import InputError, suggest_name
    from lesionseg.registry import FAMILIES
    from search.monitoring.console import make_console
    from search.spec.formatting import options_markdown

    if family is not None and family not in FAMILIES:
        raise InputError(f"options: unknown family {family!r} ({suggest_name(family, FAMILIES)})")
    page = options_markdown({family: FAMILIES[family]} if family else FAMILIES)
    if markdown:
        print(page, end="")
    else:  # a cell on the console has no line breaks
        make_console().print(Markdown(page.replace("<br>", ", ")))
