"""``lesionsearch data check``: audit a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder or CSV manifest.")],
    layout: Annotated[str, typer.Option(help="Name of the layout; auto detects it.")] = "auto",
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A data set that must not share images with it. Repeatable."),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all findings as JSON.")
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Write a contact sheet of all suspect images."),
    ] = None,
) -> None:
    """Read every pair of a data set; report counts, defects and leakage (exit code 1)."""
    from lesionseg.data.duplicates.leakage import audit_datasets
    from lesionseg.viz.contact_sheet import draw_contact_sheet
    from search.monitoring.console import make_console, progress_bar
    from search.monitoring.tables import print_leakage_report
    from search.study.data_check import check_output_files, raise_on_leaks, write_json

    check_output_files(json_, sheet)
    console = make_console()
    with progress_bar(console, "reading pairs") as tick:
        found = audit_datasets([root, *(against or [])], layout, on_progress=tick)
    print_leakage_report(console, found)
    if json_:
        write_json(found, json_)
    if sheet:
        console.print(f"{draw_contact_sheet(found, sheet)} suspects: {sheet}", markup=False)
    raise_on_leaks(found)
