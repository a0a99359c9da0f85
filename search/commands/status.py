"""``lesionsearch status``: progress of one study, or of all."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from search.commands.common import Storage


def status(
    name: Annotated[str | None, typer.Argument(help="A study.", show_default="all studies")] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show the state of a study: trials by state, workers, best trial, test evaluations."""
    from search.monitoring.console import make_console
    from search.monitoring.live import watch as watch_statuses
    from search.monitoring.status import RunsReader
    from search.monitoring.status_view import print_statuses

    reader = RunsReader(name, storage)
    console = make_console()
    if as_json:
        statuses = [asdict(status) for status in reader.read()]
        print(json.dumps(statuses[0] if name else statuses, indent=1))
    elif watch:
        watch_statuses(console, lambda: reader.read(measure_disk=False))
    else:
        print_statuses(console, reader.read())
