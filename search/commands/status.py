"""``lesionsearch status``: progress of one study, or of all."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from search.commands.common import Storage


def status(
    name: Annotated[str | None, typer.Argument(help="A study. [all studies]")] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show the state of a study: trials by state, workers, best trial, test evaluations."""
    from search.monitoring import live
    from search.monitoring import tables as show
    from search.monitoring.status import looking

    look = looking(name, storage)
    console = show.make_console()
    if as_json:
        found = look()
        print(json.dumps(found[0] if name else found, indent=1))
    elif watch:
        live.watch(console, lambda: look(disk=False))
    else:
        show.print_statuses(console, look())
