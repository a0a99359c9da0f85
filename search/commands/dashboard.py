"""``lesionsearch dashboard``: studies in the browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from search.commands.common import OptionalFolder, Storage
from search.output import tolerant_output


@tolerant_output()
def dashboard(
    name: Annotated[
        str | None, typer.Argument(help="A study.", show_default="all of the storage")
    ] = None,
    storage: Storage = None,
    out: OptionalFolder = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; non-loopback addresses require a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="File whose single line is the password. Default: LESIONSEARCH_DASHBOARD_PASSWORD."
        ),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option(
            help="Public origin of a reverse proxy in front of the dashboard: https://lab.example."
        ),
    ] = None,
    allow_edit: Annotated[
        bool, typer.Option("--allow-edit", help="Allow notes to be edited.")
    ] = False,
) -> None:
    """Show studies in the browser: trials, curves, pictures, notes and plots."""
    from search.monitoring.dashboard.access import ListenAddress, read_password

    address = ListenAddress(host, port, read_password(password_file), public, allow_edit)
    from search.monitoring.dashboard.server import Dashboard, find_source

    def print_line(line: str) -> None:
        print(f"lesionsearch: {line}", file=sys.stderr)

    server = Dashboard(find_source(name, storage, out), address, print_line)
    server.serve(lambda url: print(f"dashboard: {url} (press Ctrl-C to stop)", flush=True))
