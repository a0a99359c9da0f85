"""Progress of studies on the console: a live view of their status, a line per finished trial."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from lesionseg.config import TrialConfig
from lesionseg.training.types import EpochRecord
from search.monitoring.console import STATE_STYLES
from search.monitoring.status import StatusReader, StudyStatus
from search.monitoring.status_view import render_status, render_statuses
from search.signals import SignalHandler
from search.spec.formatting import format_config
from search.storage import trial_records
from search.storage.retrying_storage import backend_of
from search.storage.trial_records import TrialAttr

#: Seconds between two updates.
PERIOD_S = 1.0
#: Largest share of a core that a view beside a search may use.
CPU_SHARE = 0.02
#: Seconds that the end of a view waits for its thread.
JOIN_TIMEOUT_S = 2.0


class TrialLog:
    """A ``TrialListener`` of the workers that prints finished trials."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def trial_started(self, number: int, config: TrialConfig) -> None:
        pass  # the live view shows running trials

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        pass

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Print the trial's number, state, Dice, cost or error, and configuration."""
        attrs, value = trial.user_attrs, trial.value
        state = trial_records.describe_state(trial)
        style = STATE_STYLES[trial_records.state_of(trial)]
        if value is None and trial.last_step is not None:
            value = trial.intermediate_values[trial.last_step]
        dice = "     -" if value is None else f"{value:.4f}"
        cost = (
            f"{attrs['epochs']:>3} epochs {attrs['seconds']:6.1f} s" if "seconds" in attrs else ""
        )
        parts = [attrs.get(TrialAttr.MESSAGE) or cost, attrs.get(TrialAttr.BASELINE)]
        if TrialAttr.CONFIG in attrs:
            parts.append(format_config(attrs[TrialAttr.CONFIG]))
        details = escape("  ".join(part for part in parts if part))
        self.console.print(f"trial {trial.number:>3}  [{style}]{state:<8}[/]  {dice}  {details}")


def watch(console: Console, read: Callable[[], Sequence[StudyStatus]]) -> None:
    """Show the status of studies until an interrupt: redrawn on a terminal, else repeated."""
    while not can_redraw(console):
        console.print(render_statuses(read(), console.width, details=True))
        time.sleep(PERIOD_S)
    with SignalHandler().installed(), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(render_statuses(read(), console.width), refresh=True)
            time.sleep(PERIOD_S)


@contextmanager
def live_view(
    console: Console, open_reader: Callable[[], StatusReader], period_s: float = PERIOD_S
) -> Iterator[None]:
    """Show a study's status below other output of the process, if it is on a terminal.

    An error in reading skips one update. open_reader: called in the view's thread, where the
    database connection is used.
    """
    if not can_redraw(console):
        yield
        return
    stop_event = threading.Event()

    def update(live: Live) -> None:
        reader: StatusReader | None = None
        while not stop_event.is_set():
            start = time.thread_time()
            try:
                if reader is None:
                    reader = open_reader()
                    backend_of(reader.study).on_wait = None  # the search reports waiting itself
                status = reader.read(measure_disk=False)
                live.update(render_status(status, console.width), refresh=True)
            except Exception:  # noqa: S110
                pass  # the search reports its own errors; the view must not end it
            stop_event.wait(pause_s(period_s, time.thread_time() - start))

    with Live(console=console, auto_refresh=False, transient=True) as live:
        thread = threading.Thread(target=update, args=(live,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop_event.set()
            thread.join(JOIN_TIMEOUT_S)  # it may be waiting for an unavailable database


def pause_s(period_s: float, cpu_s: float) -> float:
    """Return the seconds until the next update, so that updates take at most CPU_SHARE."""
    return max(period_s, cpu_s / CPU_SHARE)


def can_redraw(console: Console) -> bool:
    """Return whether lines can be overwritten: a terminal that is not a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal
