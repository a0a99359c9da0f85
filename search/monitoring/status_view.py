"""Status of a study as text for a terminal of any width."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.monitoring.console import STATE_STYLES
from search.monitoring.status import Folds, RunningTrial, StudyStatus, WorkerStatus
from search.spec.formatting import format_config, format_encoder_weights
from search.storage.lease_types import Command

NO_STUDIES = "no studies under runs/; `lesionsearch demo` creates one"
#: Characters of a sparkline, and its largest length.
BLOCKS, MAX_SPARKLINE = "▁▂▃▄▅▆▇█", 24
#: Terminal widths below which less important parts are omitted.
WIDE, NARROW, VERY_NARROW = 120, 90, 50

#: Title of each column of the workers' table, and the terminal width that it needs.
_COLUMNS = (
    ("worker", 0), ("device", NARROW), ("heartbeat", VERY_NARROW), ("trial", 0), ("epoch", 0),
    ("Dice", 0), ("by epoch", VERY_NARROW), ("configuration", WIDE),
)  # fmt: skip


def render_statuses(
    statuses: Sequence[StudyStatus], width: int, *, details: bool = False
) -> RenderableType:
    """Return the status of each study; see ``render_status``."""
    views = [render_status(status, width, details=details) for status in statuses]
    return Group(*views) if views else Text(NO_STUDIES)


def render_status(status: StudyStatus, width: int, *, details: bool = False) -> RenderableType:
    """Return the status of a study for a terminal of some columns.

    details: whether to include folds, test result and disk usage, and no progress bar.
    """
    lines = [_render_counts(status)]
    if status.command != Command.RUN:
        lines.append(Text(f"command to the workers: {status.command}", style="yellow"))
    if best := status.best:
        folds = f" ({format_folds(best.folds)})" if details and best.folds else ""
        dice = f"validation Dice {best.value:.4f}{folds}"
        lines.append(Text(f"best: trial {best.number}, {dice}, {format_config(best.config)}"))
    if details and status.encoder_weights:
        weights = format_encoder_weights(status.encoder_weights)
        lines.append(Text(f"encoder weights: {weights}"))
    if details and status.test:
        low, high = status.test["ci95"]
        lines.append(Text(f"test Dice: {status.test['dice']:.4f} ({low:.4f} .. {high:.4f})"))
    if details:
        lines.append(Text(f"test evaluations of this study: {status.test_evaluations}"))
    if details and status.disk_bytes is not None:
        lines.append(Text(f"checkpoints and weights: {status.disk_bytes / 1e6:.1f} MB"))
    for line in [] if details else lines:  # the live view has no room for wrapped lines
        line.no_wrap, line.overflow = True, "ellipsis"
    workers = [_render_workers(status, width)] if status.workers or status.running else []
    return Group(_render_head(status, width, show_bar=not details), *lines, *workers)


def sparkline(values: Sequence[float | None], top: float, width: int = MAX_SPARKLINE) -> str:
    """Return a curve as block characters, at most ``width``; of many values a part is shown.

    values: None is a gap. top: value of the highest block, unless the maximum is higher.
    """
    numbers = [v for v in values if v is not None]
    if not numbers:
        return ""
    n = len(values)
    sampled = values if n <= width else [values[(i + 1) * n // width - 1] for i in range(width)]
    low, high = min(numbers), max(*numbers, top)
    scale = len(BLOCKS) / ((high - low) or 1)
    heights = [None if v is None else int((v - low) * scale) for v in sampled]
    return "".join(" " if h is None else BLOCKS[min(h, len(BLOCKS) - 1)] for h in heights)


def forecast(status: StudyStatus, now: float | None = None) -> str:
    """Return when the search will end; empty if that is unknown or no worker trains.

    With ``budget.total_hours``, when the whole job will end. now: seconds since 1970; None for the
    current time.
    """
    hours, job = status.hours_left, status.job
    is_active = any(w.trial is not None and not w.is_expired for w in status.workers)
    if job is not None:
        hours = max(0.0, job.total - job.spent)
        if not job.is_running:
            return ""
    elif not hours or not is_active or status.finished >= status.budget["trials"]:
        return ""
    end = time.localtime((time.time() if now is None else now) + hours * 3600)
    clock = time.strftime("%H:%M" if hours < 12 else "%a %H:%M", end)
    duration = f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
    what = " of the whole job" if job is not None else ""
    return f"about {duration}{what} left, until {clock}"


def format_folds(folds: Folds) -> str:
    """Return ``mean of 3 folds: 0.8196, 0.9219, 0.8182; deviation 0.0595``."""
    dice = ", ".join(f"{value:.4f}" for value in folds["dice"])
    deviation = folds["deviation"]
    suffix = "" if deviation is None else f"; deviation {deviation:.4f}"
    return f"mean of {len(folds['dice'])} folds: {dice}{suffix}"


def _render_head(status: StudyStatus, width: int, *, show_bar: bool) -> RenderableType:
    finished, budget = status.finished, status.budget["trials"]
    cells: list[RenderableType] = [Text(f"{status.study}:", style="bold")]
    if show_bar and width >= NARROW:
        cells.append(ProgressBar(total=max(1, budget), completed=finished, width=24))
    cells.append(Text(f"{finished} of {budget} trials"))
    time_left = forecast(status)
    if time_left and width >= VERY_NARROW:
        cells.append(Text(time_left, style="cyan"))
    table = Table.grid(padding=(0, 1))
    for _ in cells:
        table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row(*cells)
    return table


def _render_counts(status: StudyStatus) -> Text:
    line = Text(" · ").join(
        Text(f"{count} {state}", style=STATE_STYLES.get(state, ""))
        for state, count in status.counts.items()
        if count
    )
    if status.reasons:
        reasons = ", ".join(f"{reason} {n}" for reason, n in status.reasons.items())
        line.append(f"  (reasons: {reasons})", "dim")
    return line or Text("no trials yet")


def _render_workers(status: StudyStatus, width: int) -> Table:
    """Return a row for each worker with its trial, then for each trial without a worker."""
    trials = {trial.number: trial for trial in status.running}
    best_dice = status.best.value if status.best else 0.0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    is_shown = [width >= min_width for _, min_width in _COLUMNS]
    for (name, _), shown in zip(_COLUMNS, is_shown, strict=True):
        if shown:
            # The configuration takes the remaining width.
            ratio = 1 if name == "configuration" else None
            table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=ratio)
    rows: list[tuple[WorkerStatus | None, RunningTrial | None]] = [
        (w, None if w.trial is None else trials.pop(w.trial, None)) for w in status.workers
    ]
    rows += [(None, trial) for trial in trials.values()]
    for worker, trial in rows:
        cells = zip(_make_cells(worker, trial, best_dice), is_shown, strict=True)
        table.add_row(*(Text(cell, style) for (cell, style), shown in cells if shown))
    return table


def _make_cells(
    worker: WorkerStatus | None, trial: RunningTrial | None, best_dice: float
) -> list[tuple[str, str]]:
    """Return text and style of each of _COLUMNS."""
    cells = [("no worker", ""), ("", ""), ("", "")]
    if worker:
        share = f" x {worker.share:.2g}" if worker.share < 1 else ""
        heartbeat = f"{worker.seconds_since_heartbeat:.0f} s ago"
        last = (f"{heartbeat}, expired", "red") if worker.is_expired else (heartbeat, "")
        cells = [(f"{worker.host}:{worker.pid}", ""), (worker.device + share, ""), last]
    if trial is None:
        return [*cells, ("-", ""), ("-", ""), ("-", ""), ("", ""), ("", "")]
    dice = next((f"{v:.4f}" for v in reversed(trial.curve) if v is not None), "-")
    epoch = max(worker.epoch if worker else 0, len(trial.curve))
    config = format_config(trial.config) if trial.config else ""
    cells += [(str(trial.number), ""), (f"{epoch}/{trial.epochs}", ""), (dice, "")]
    return [*cells, (sparkline(trial.curve, best_dice), "cyan"), (config, "")]
