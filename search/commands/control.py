"""``lesionsearch status``, and ``pause``, ``resume`` and ``stop`` for all workers of a study."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from search.commands.common import Storage, StudyName, load_study


def status(
    name: Annotated[str | None, typer.Argument(help="A study.", show_default="all studies")] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show the state of a study: trials by state, workers, best trial, test evaluations."""
    from search.monitoring.console import make_console
    from search.monitoring.live import watch as watch_statuses
    from search.monitoring.status import runs_reader
    from search.monitoring.status_view import render_statuses

    problems: set[str] = set()

    def report(error: Exception) -> None:
        if str(error) not in problems:  # print each error once with --watch
            problems.add(str(error))
            print(f"lesionsearch: {error}", file=sys.stderr)

    read = runs_reader(name, storage, report)
    console = make_console()
    if as_json:
        plain = [asdict(status) for status in read()]
        print(json.dumps(plain[0] if name else plain, indent=1))
    elif watch:
        watch_statuses(console, lambda: read(measure_disk=False))
    elif (statuses := read()) or not problems:
        console.print(render_statuses(statuses, console.width, details=True))
    if problems:
        raise typer.Exit(2)


def pause(name: StudyName, storage: Storage = None) -> None:
    """Pause a study: its workers save and requeue their trials, then wait."""
    _send(name, storage, "pause")


def resume(name: StudyName, storage: Storage = None) -> None:
    """Resume a paused study."""
    _send(name, storage, "run")


def stop(name: StudyName, storage: Storage = None) -> None:
    """Stop a study: its workers save and requeue their trials, then exit; `run` resumes it."""
    _send(name, storage, "stop")


def _send(name: str, storage: str | None, command: str) -> None:
    from search.storage.lease_types import Command
    from search.storage.leases import TrialLeases

    leases = TrialLeases(load_study(name, storage))
    leases.command = Command(command)
    n_workers = len(leases.list_workers())
    print(f"{name}: sent '{command}' to {n_workers} worker{'s' if n_workers != 1 else ''}")
