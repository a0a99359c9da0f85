"""A study's standing, drawn for a terminal of any width."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.monitoring.tables import STYLES, duration
from search.spec.formatting import format_config

#: Characters that a curve is drawn with at most, and from lowest to highest.
LONGEST, BLOCKS = 24, "▁▂▃▄▅▆▇█"
#: Columns of a terminal below which what is less needed is left out.
WIDE, NARROW, VERY_NARROW = 120, 90, 50

#: As ``search.monitoring.status`` tells it.
Status = Mapping[str, Any]


def sparkline(values: Sequence[float | None], top: float, width: int = LONGEST) -> str:
    """A curve in at most ``width`` characters, the last of several epochs standing for them.

    The lowest block is the curve's lowest value, the highest ``top`` or its own highest, whichever
    is higher. A value that is None is a gap.
    """
    known = [v for v in values if v is not None]
    if not known:
        return ""
    n = len(values)
    picked = values if n <= width else [values[(i + 1) * n // width - 1] for i in range(width)]
    low, high = min(known), max(*known, top)
    return "".join(" " if v is None else _block((v - low) / ((high - low) or 1)) for v in picked)


def _block(height: float) -> str:
    return BLOCKS[min(len(BLOCKS) - 1, int(height * len(BLOCKS)))]


def view(status: Status, width: int) -> RenderableType:
    """A study's standing for a terminal of that many columns; no line is longer."""
    parts: list[RenderableType] = [_head(status, width), _counts(status)]
    if status["command"] != "run":
        parts.append(Text(f"its workers are told to {status['command']}", style="yellow"))
    best = status["best"]
    if best:
        told = f"best: trial {best['number']}, validation Dice {best['value']:.4f}"
        parts.append(Text(f"{told}, {format_config(best['config'])}"))
    if status["workers"] or status["running"]:
        parts.append(_workers(status, width))
    for part in parts:
        if isinstance(part, Text):
            part.no_wrap, part.overflow = True, "ellipsis"
    return Group(*parts)


def _head(status: Status, width: int) -> RenderableType:
    spent, budget = status["spent"], status["budget"]["trials"]
    row = Table.grid(padding=(0, 2))
    told = [Text(status["study"], style="bold"), Text(f"{spent} of {budget} trials")]
    if width >= NARROW:
        told.insert(1, ProgressBar(total=max(1, budget), completed=spent, width=24))  # type: ignore[arg-type]
    left = forecast(status)
    if left and width >= VERY_NARROW:
        told.append(Text(left, style="cyan"))
    for _ in told:
        row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(*told)
    return row


def forecast(status: Status, now: float | None = None) -> str:
    """When the search will end at the pace so far (``status.hours_left``); empty while unknown.

    Nothing is foretold of a study that nobody works on, or that is done.
    """
    hours = status["hours_left"]
    at_work = any(w["trial"] is not None and not w["silent"] for w in status["workers"])
    if not hours or not at_work or status["spent"] >= status["budget"]["trials"]:
        return ""
    ends = time.localtime((time.time() if now is None else now) + hours * 3600)
    when = time.strftime("%H:%M" if hours < 12 else "%a %H:%M", ends)
    return f"about {duration(hours)} left, until {when}"


def _counts(status: Status) -> Text:
    line = Text()
    for state, count in status["counts"].items():
        if count:
            line.append(" · " if line else "")
            line.append(f"{count} {state}", style=STYLES.get(state, ""))
    if status["reasons"]:
        line.append(f"  ({', '.join(f'{r} {n}' for r, n in status['reasons'].items())})", "dim")
    return line if line else Text("no trial yet")


def _workers(status: Status, width: int) -> Table:
    """A row for each worker and its trial; then trials that no worker speaks for."""
    running = {each["number"]: each for each in status["running"]}
    top = status["best"]["value"] if status["best"] else 0.0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, needed in _COLUMNS:
        if width >= needed:
            # The configuration, without a name, takes what the others leave.
            ratio = None if name else 1
            table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=ratio)
    table.expand = width >= WIDE
    for worker in status["workers"]:
        trial = running.pop(worker["trial"], None)
        _row(table, width, _who(worker), trial, worker["epoch"], _beat(worker), top)
    for trial in running.values():
        _row(table, width, ("nobody", ""), trial, 0, Text(""), top)
    return table


#: Each column and the columns of a terminal that it needs.
_COLUMNS = (
    ("worker", 0), ("device", NARROW), ("trial", 0), ("epoch", 0), ("Dice", 0),
    ("by epoch", VERY_NARROW), ("last beat", VERY_NARROW), ("", WIDE),
)  # fmt: skip


def _row(
    table: Table,
    width: int,
    who: tuple[str, str],
    trial: Mapping[str, Any] | None,
    epoch: int,
    beat: Text,
    top: float,
) -> None:
    curve = trial["curve"] if trial else []
    last = next((v for v in reversed(curve) if v is not None), None)
    cells = (
        Text(who[0]),
        Text(who[1]),
        Text(str(trial["number"]) if trial else "-"),
        Text(f"{max(epoch, len(curve))}/{trial['epochs']}" if trial else "-"),
        Text("-" if last is None else f"{last:.4f}"),
        Text(sparkline(curve, top), style="cyan"),
        beat,
        Text(format_config(trial["config"]) if trial and trial["config"] else ""),
    )
    table.add_row(*(cell for cell, (_, n) in zip(cells, _COLUMNS, strict=True) if width >= n))


def _who(worker: Mapping[str, Any]) -> tuple[str, str]:
    share = f" x {worker['share']:.2g}" if worker["share"] < 1 else ""
    return f"{worker['host']}:{worker['pid']}", worker["device"] + share


def _beat(worker: Mapping[str, Any]) -> Text:
    told = f"{worker['beat_seconds_ago']:.0f} s ago"
    return Text(f"{told}, silent", style="red") if worker["silent"] else Text(told)
