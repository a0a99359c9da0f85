"""Live view: the status of studies, redrawn at the bottom of a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from search.monitoring.status import StatusReader
from search.monitoring.status_view import NO_STUDIES, print_statuses, render_status
from search.monitoring.study_status import StudyStatus
from search.signals import sigterm_as_interrupt

#: Seconds between two updates.
PERIOD_S = 1.0
#: Largest share of a core that a view beside a search may use.
CPU_SHARE = 0.02
#: Seconds that the end of a view waits for its thread.
JOIN_TIMEOUT_S = 2.0


def watch(
    console: Console, read: Callable[[], Sequence[StudyStatus]], period_s: float = PERIOD_S
) -> None:
    """Show the status of studies until an interrupt: redrawn on a terminal, else repeated."""
    while not can_redraw(console):
        print_statuses(console, read())
        time.sleep(period_s)
    with sigterm_as_interrupt(), _live(console, transient=False) as live:
        while True:
            live.update(_render(console, read()), refresh=True)
            time.sleep(period_s)


class LiveView:
    """Context manager that shows a study's status below other output of the process.

    Without a terminal it does nothing. An error in reading skips one update. open_reader: called
    in the view's thread, where the database connection is used.
    """

    def __init__(
        self,
        console: Console,
        open_reader: Callable[[], StatusReader],
        period_s: float = PERIOD_S,
    ) -> None:
        self.console, self.open_reader, self.period_s = console, open_reader, period_s
        self.thread: threading.Thread | None = None
        self._live = _live(console, transient=True)
        self._stop_event = threading.Event()

    def __enter__(self) -> LiveView:
        if can_redraw(self.console):
            self._live.start()
            self.thread = threading.Thread(target=self._update, daemon=True)
            self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.thread is not None:
            self._stop_event.set()
            self.thread.join(JOIN_TIMEOUT_S)  # it may be waiting for an unavailable database
            self._live.stop()

    def _update(self) -> None:
        reader: StatusReader | None = None
        while not self._stop_event.is_set():
            start = time.thread_time()
            try:
                reader = reader or self.open_reader()
                status = reader.read(measure_disk=False)
                self._live.update(_render(self.console, [status]), refresh=True)
            except Exception:  # noqa: S110
                pass  # the search reports its own errors; the view must not end it
            self._stop_event.wait(pause_s(self.period_s, time.thread_time() - start))


def pause_s(period_s: float, cpu_s: float) -> float:
    """Return the seconds until the next update, so that updates take at most CPU_SHARE."""
    return max(period_s, cpu_s / CPU_SHARE)


def can_redraw(console: Console) -> bool:
    """Return whether lines can be overwritten: a terminal that is not a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal


def _live(console: Console, *, transient: bool) -> Live:
    return Live(
        console=console, auto_refresh=False, transient=transient, vertical_overflow="ellipsis"
    )


def _render(console: Console, statuses: Sequence[StudyStatus]) -> RenderableType:
    if not statuses:
        return Text(NO_STUDIES)
    return Group(*(render_status(status, console.width) for status in statuses))
