"""The console, and progress bars of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

#: Colours of trial states.
STATE_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "closed": "dim"}
_DESCRIPTION = "{task.description}"


def make_console() -> Console:
    """Return a console on standard output; without a terminal its lines are not wrapped."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240, soft_wrap=True)


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal; yield a function that takes the finished and total number."""
    columns = (_DESCRIPTION, BarColumn(), "{task.completed}/{task.total}")
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each kind of work on a terminal, from its first call on.

    Yields a function that takes the title, and the finished and total number.
    """
    columns = (_DESCRIPTION, BarColumn(), "{task.completed}/{task.total}")
    disable = not console.is_terminal
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:

        def update(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=done, total=total)

        yield update


@contextmanager
def download_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar per file on a terminal, else a line per finished file.

    Yields a function that takes the file's name, and its downloaded and total bytes.
    """
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    disable = not console.is_terminal
    tasks: dict[str, TaskID] = {}
    with Progress(_DESCRIPTION, *columns, console=console, disable=disable) as progress:

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(escape(name), total=total)
            progress.update(tasks[name], completed=done)
            if done == total and disable:
                console.print(f"{name}: {total / 1e6:.0f} MB", markup=False)

        yield update
