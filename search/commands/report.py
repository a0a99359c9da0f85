"""``lesionsearch report``: write a study's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import Storage, StudyName


def report(
    name: StudyName,
    storage: Storage = None,
    formats: Annotated[
        str, typer.Option("--format", help="html, md and json; several separated by commas.")
    ] = "html",
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of a `baselines run` on the same test images, to compare with."),
    ] = None,
) -> None:
    """Write a study's report: an HTML page, Markdown tables, or JSON with every number."""
    from search.monitoring.status import find_run
    from search.results.report import parse_formats, write_reports

    parsed = parse_formats(formats)
    for path in write_reports(find_run(name), parsed, storage=storage, against=against):
        print(path)
