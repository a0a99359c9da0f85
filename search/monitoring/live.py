"""The live view: where a study stands, drawn again and again at the foot of a terminal.

It reads what any other process could read of the study, so that it looks the same beside the
workers and far from them. Where standard output is no terminal there is no view, and lines are
printed instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from search.monitoring.status_view import Status, view
from search.monitoring.tables import print_statuses
from search.signals import sigterm_as_interrupt

#: Seconds between two looks.
EVERY = 1.0
#: Of a core, what a view beside the work may take.
SHARE = 0.02
#: Seconds that the last look of a view may take when its work has ended.
PATIENCE = 2.0


def watch(console: Console, look: Callable[[], Sequence[Status]], every: float = EVERY) -> None:
    """Draws studies' standings until it is interrupted; the last one stays.

    Where the console is no terminal that can be drawn on, they are printed again and again.
    """
    while not can_draw(console):
        print_statuses(console, look())
        time.sleep(every)
    with sigterm_as_interrupt(), _live(console, transient=False) as live:
        while True:
            live.update(_drawn(console, look()), refresh=True)
            time.sleep(every)


class Following:
    """Draws a study's standing below what else is printed, from a thread, while entered.

    look: called in that thread, again and again; what it raises costs one picture and no more.
    Nothing happens where the console is no terminal that can be drawn on.
    """

    def __init__(
        self, console: Console, open_: Callable[[], Callable[[], Status]], every: float = EVERY
    ) -> None:
        self.console, self.open, self.every = console, open_, every
        self.live = _live(console, transient=True)
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Following:
        if can_draw(self.console):
            self.live.start()
            self.thread = threading.Thread(target=self._draw, daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.thread is None:
            return
        self.over.set()
        self.thread.join(PATIENCE)  # it may be waiting for a database that is away
        self.live.stop()

    def _draw(self) -> None:
        look: Callable[[], Status] | None = None
        while not self.over.is_set():
            began = time.thread_time()
            try:
                look = look or self.open()
                self.live.update(_drawn(self.console, [look()]), refresh=True)
            except Exception:  # noqa: S110
                pass  # the work itself tells what is wrong; a view must not end it
            self.over.wait(pause(self.every, time.thread_time() - began))


def pause(every: float, took: float) -> float:
    """Seconds until the next look: longer where a look takes long, SHARE of a core at most."""
    return max(every, took / SHARE)


def can_draw(console: Console) -> bool:
    """Whether lines can be drawn over: a terminal, and no dumb one."""
    return console.is_terminal and not console.is_dumb_terminal


def _live(console: Console, *, transient: bool) -> Live:
    return Live(
        console=console, auto_refresh=False, transient=transient, vertical_overflow="ellipsis"
    )


def _drawn(console: Console, found: Sequence[Status]) -> RenderableType:
    if not found:
        return Text("no studies under runs/; `lesionsearch demo` makes one")
    return Group(*(view(each, console.width) for each in found))
