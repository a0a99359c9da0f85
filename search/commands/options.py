"""``lesionsearch options``: every option of the search with its parameters and ranges."""

from __future__ import annotations

from typing import Annotated

import typer


def options(
    family: Annotated[str | None, typer.Argument(help="One family. [all]")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/options.md.")] = False,
) -> None:
    """List every option of the search with its parameters and ranges."""
    from lesionseg.errors import InputError, nearest
    from lesionseg.registry import FAMILIES
    from search.monitoring import tables as show

    if family is not None and family not in FAMILIES:
        raise InputError(f"options: unknown family {family!r} ({nearest(family, FAMILIES)})")
    chosen = {family: FAMILIES[family]} if family else FAMILIES
    if markdown:
        from search.spec.options_reference import options_markdown

        print(options_markdown(chosen), end="")
        return
    show.print_options(show.make_console(), chosen)
