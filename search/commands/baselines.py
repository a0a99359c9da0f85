"""``lesionsearch baselines``: the published systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import Data, Device, Storage, Threads, resume_hint
from search.output import tolerant_output


def list_baselines() -> None:
    """List the published systems with their sources."""
    from rich.table import Table

    from search.monitoring.console import make_console
    from search.spec.baselines import load_baselines

    table = Table("baseline", "source", "description", box=None, pad_edge=False)
    for baseline in load_baselines().values():
        table.add_row(baseline.name, baseline.source, baseline.about)
    make_console().print(table, markup=False)


@tolerant_output()
def run(
    data: Data,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Baselines, separated by commas. Repeatable.", show_default="all"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Training epochs.")] = 40,
    image_size: Annotated[int, typer.Option(min=16, help="Image side in pixels.")] = 256,
    repeats: Annotated[
        int, typer.Option(min=1, help="Number of times each baseline is trained.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/baselines"),
    storage: Storage = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of data, or the seed."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the published systems under one budget, test each, and write one table."""
    from search.monitoring.console import make_console
    from search.results.tables import print_baseline_table
    from search.run_baselines import BaselineOptions, make_spec, run_baselines

    console = make_console()
    spec = make_spec(image_size, epochs, set_ or [])
    names = [name.strip() for each in only or [] for name in each.split(",") if name.strip()]
    options = BaselineOptions(tuple(data), out, names, repeats, storage, device, threads)
    with resume_hint(console):
        results = run_baselines(console, spec, options)
    print_baseline_table(console, results)
    console.print(f"table and figures: {out}", markup=False)
