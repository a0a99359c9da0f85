"""What the command line shows: tables, and the progress of a search as it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from lesionseg.config import ABOUT_SETTINGS, SETTINGS, TrialConfig
from lesionseg.data.duplicates.audit import DatasetAudit
from lesionseg.data.duplicates.leakage import LeakageReport
from lesionseg.space import RegistryEntry
from lesionseg.training.types import EpochRecord
from search.spec.baselines import Baseline
from search.spec.formatting import format_config
from search.storage import trial_records

#: Sets of copies that are listed at most.
MOST_COPIES = 20
STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "skipped": "dim"}


def make_console() -> Console:
    """Standard output; plain and unwrapped where it is no terminal."""
    console = Console(highlight=False)
    # A file or a pipe has no width: a line must not be cut to a terminal's there.
    return console if console.is_terminal else Console(highlight=False, width=240, soft_wrap=True)


class TrialLines:
    """A line per finished trial; on a terminal, bars for the study and the trial at work.

    bars: whether these are wanted.
    """

    def __init__(
        self, console: Console, budget: int, spent: int, epochs: int, *, bars: bool = True
    ) -> None:
        self.console, self.epochs = console, epochs
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not (bars and console.is_terminal),
        )
        self.study = self.bars.add_task("study", total=budget, completed=spent, note="")
        self.trial: TaskID | None = None

    def expect(self, n: int) -> None:
        """That many trials are to come in all."""
        self.bars.update(self.study, total=n)

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Shows a bar for its epochs."""
        self._drop()
        self.trial = self.bars.add_task(
            f"trial {number}", total=self.epochs, note=format_config(config)
        )

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Moves the trial's bar."""
        if self.trial is not None:
            note = f"Dice {record.metrics.dice:.4f}  loss {record.train_loss:.4f}"
            self.bars.update(self.trial, completed=record.epoch, note=note)

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Prints its line and the best so far."""
        self._drop()
        state = trial_records.state_of(trial)
        if state in {"complete", "pruned", "failed"}:
            self.bars.advance(self.study)
        if best is not None:
            self.bars.update(self.study, note=f"best {best.value:.4f} (trial {best.number})")
        value = trial.value if trial.value is not None else _last(trial)
        dice = "     -" if value is None else f"{value:.4f}"
        style = STYLES.get(state, "")
        what = trial.user_attrs.get("message") or _cost(trial)
        config = trial.user_attrs.get("config")
        baseline = trial.user_attrs.get(trial_records.TrialAttr.BASELINE)
        what = f"{what}  {baseline}" if baseline else what
        line = f"trial {trial.number:>3}  [{style}]{state:<8}[/]  {dice}  {escape(what)}"
        self.console.print(line + (f"  {escape(format_config(config))}" if config else ""))

    def _drop(self) -> None:
        if self.trial is not None:
            self.bars.remove_task(self.trial)
            self.trial = None


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work of known length; nothing where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def fetching(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each file that is fetched; without a terminal a line when one is there."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(escape(name), total=total)
            bar.update(tasks[name], completed=done)
            if done == total and not console.is_terminal:
                console.print(f"{name}: {total / 1e6:.0f} MB", markup=False)

        yield tick


def print_status(console: Console, status: Mapping[str, Any]) -> None:
    """A study's standing."""
    budget = status["budget"]["trials"]
    console.print(f"[bold]{escape(status['study'])}[/]: {status['spent']} of {budget} trials")
    table = Table("state", "trials", box=None, pad_edge=False)
    for state, count in status["counts"].items():
        if count:
            table.add_row(state, str(count))
    console.print(table)
    if status["reasons"]:
        console.print("reasons: " + ", ".join(f"{r} {n}" for r, n in status["reasons"].items()))
    if status["command"] != "run":
        console.print(f"its workers are told to {status['command']}")
    if status["workers"]:
        console.print(_workers(status["workers"]))
    if status["hours_left"] is not None and status["spent"] < budget:
        console.print(f"about {duration(status['hours_left'])} left at the pace so far")
    best = status["best"]
    if best:
        line = f"best: trial {best['number']}, validation Dice {best['value']:.4f}"
        if best.get("folds"):
            line += f" ({over_folds(best['folds'])})"
        console.print(f"{line}, {escape(format_config(best['config']))}")
    if status["test"]:
        console.print(
            f"test Dice: {_with_interval(status['test']['dice'], status['test']['ci95'])}"
        )
    if status["disk_bytes"] is not None:
        console.print(f"checkpoints and weights: {status['disk_bytes'] / 1e6:.1f} MB")
    console.print(f"looks at the test images: {status['test_evaluations']}")


def print_statuses(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """The standing of each study, or where one comes from."""
    for each in found:
        print_status(console, each)
    if not found:
        console.print("no studies under runs/; `lesionsearch demo` makes one")


def _workers(workers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("host", "pid", "device", "does", "last beat", box=None, pad_edge=False)
    for each in workers:
        does = f"trial {each['trial']}, epoch {each['epoch']}"
        silent = " (silent)" if each["silent"] else ""
        table.add_row(
            escape(each["host"]),
            str(each["pid"]),
            each["device"] + (f" x {each['share']:.2g}" if each["share"] < 1 else ""),
            each["state"] if each["trial"] is None else does,
            f"{each['beat_seconds_ago']:.0f} s ago{silent}",
        )
    return table


def duration(hours: float) -> str:
    """``34 minutes`` or ``2.5 hours``."""
    minutes = hours * 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{hours:.1f} hours"


def print_options(console: Console, families: Mapping[str, Mapping[str, RegistryEntry]]) -> None:
    """Every family, option and range."""
    for family, table in families.items():
        shown = Table(
            title=family, title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        for column in ("option", "parameters", "what it is"):
            shown.add_column(column)
        for name, option in table.items():
            params = "\n".join(
                f"{k}{'*' if k in option.fixed_by_default else ''}: {escape(str(d))}"
                for k, d in option.space.items()
            )
            shown.add_row(name, params, option.about)
        console.print(shown, "")
    console.print("* stays at its default unless a study names it\n", markup=False)
    shown = Table(
        title="settings", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for column in ("setting", "range", "what it is"):
        shown.add_column(column)
    for name, domain in SETTINGS.items():
        shown.add_row(name, escape(str(domain)), ABOUT_SETTINGS[name])
    console.print(shown)


def print_baselines(console: Console, found: Sequence[Baseline]) -> None:
    """The published systems."""
    table = Table("baseline", "source", "what it is", box=None, pad_edge=False)
    for baseline in found:
        table.add_row(baseline.name, baseline.source, escape(baseline.about))
    console.print(table)


def print_audit(console: Console, audit: DatasetAudit) -> None:
    """What was found in a data set; every pair that cannot be used on a line of its own."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in audit.summarize().items():
        table.add_row(name, escape(value))
    console.print(table)
    for problem in audit.problems:
        console.print(f"[red]{escape(problem)}[/]")


def print_check(console: Console, found: LeakageReport) -> None:
    """What was found in each of some data sets, and what they share; leaks first, in red."""
    for name, audit in found.audits.items():
        if name:
            console.print(f"[bold]{escape(name)}[/]")
        print_audit(console, audit)
    if found.clusters:
        n, exact = len(found.clusters), sum(c.exact for c in found.clusters)
        occur = "1 image occurs" if n == 1 else f"{n} images occur"
        console.print(
            f"near-duplicates: {occur} under several names ({exact} with identical pixels), "
            f"leaks: {len(found.leaks)}"
        )
    else:
        console.print("near-duplicates: none")
    for cluster in found.clusters[:MOST_COPIES]:
        style, word = ("red", "leak: ") if cluster.is_leak else ("default", "")
        console.print(f"  [{style}]{word}{escape(str(cluster))}[/]")
    if len(found.clusters) > MOST_COPIES:
        console.print(f"  and {len(found.clusters) - MOST_COPIES} more; --json lists them all")
    for group in found.split_groups:
        console.print(f"  [red]leak: group {escape(str(group))}[/]")


def _cost(trial: FrozenTrial) -> str:
    epochs, seconds = trial.user_attrs.get("epochs"), trial.user_attrs.get("seconds")
    return f"{epochs:>3} epochs {seconds:6.1f} s" if epochs else ""


def _last(trial: FrozenTrial) -> float | None:
    values = trial.intermediate_values
    return values[max(values)] if values else None


def over_folds(folds: Mapping[str, Any]) -> str:
    """``mean of 3 folds: 0.8196, 0.9219, 0.8182; deviation 0.0595``."""
    dice = ", ".join(f"{value:.4f}" for value in folds["dice"])
    deviation = folds["deviation"]
    tail = "" if deviation is None else f"; deviation {deviation:.4f}"
    return f"mean of {len(folds['dice'])} folds: {dice}{tail}"


def _with_interval(mean: float, interval: list[float]) -> str:
    return f"{mean:.4f} ({interval[0]:.4f} .. {interval[1]:.4f})"
