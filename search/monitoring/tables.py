"""Tables of options, baselines and data audits on the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lesionseg.config import SETTING_DESCRIPTIONS, SETTINGS
from lesionseg.data.duplicates.audit import DatasetAudit
from lesionseg.data.duplicates.leakage import LeakageReport
from lesionseg.space import RegistryEntry
from search.spec.baselines import Baseline

#: Largest number of near-duplicate clusters to list.
MAX_CLUSTERS = 20


def print_options(console: Console, families: Mapping[str, Mapping[str, RegistryEntry]]) -> None:
    """Print every option and setting with its ranges."""
    style: dict[str, Any] = {"box": None, "pad_edge": False}
    style |= {"title_justify": "left", "title_style": "bold"}
    for family, entries in families.items():
        table = Table("option", "parameters", "description", title=family, **style)
        for name, entry in entries.items():
            params = "\n".join(
                f"{key}{'*' if key in entry.fixed_by_default else ''}: {escape(str(domain))}"
                for key, domain in entry.space.items()
            )
            table.add_row(name, params, entry.description)
        console.print(table, "")
    console.print("* has its default value unless a study names it\n", markup=False)
    table = Table("setting", "range", "description", title="settings", **style)
    for name, domain in SETTINGS.items():
        table.add_row(name, escape(str(domain)), SETTING_DESCRIPTIONS[name])
    console.print(table)


def print_baselines(console: Console, baselines: Iterable[Baseline]) -> None:
    """Print the published systems."""
    table = Table("baseline", "source", "description", box=None, pad_edge=False)
    for baseline in baselines:
        table.add_row(baseline.name, baseline.source, escape(baseline.about))
    console.print(table)


def print_audit(console: Console, audit: DatasetAudit) -> None:
    """Print the audit of a data set, with a line for each unusable pair."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in audit.summarize().items():
        table.add_row(name, escape(value))
    console.print(table)
    for problem in audit.problems:
        console.print(f"[red]{escape(problem)}[/]")


def print_leakage_report(console: Console, report: LeakageReport) -> None:
    """Print the audit of each data set, and their near-duplicates; leaks first and in red."""
    for name, audit in report.audits.items():
        if name:
            console.print(f"[bold]{escape(name)}[/]")
        print_audit(console, audit)
    clusters, summary = report.clusters, "none"
    if clusters:
        exact = sum(cluster.exact for cluster in clusters)
        subject = "1 image occurs" if len(clusters) == 1 else f"{len(clusters)} images occur"
        summary = f"{subject} under several names ({exact} with identical pixels), "
        summary += f"leaks: {len(report.leaks)}"
    console.print(f"near-duplicates: {summary}")
    for cluster in clusters[:MAX_CLUSTERS]:
        style, prefix = ("red", "leak: ") if cluster.is_leak else ("default", "")
        console.print(f"  [{style}]{prefix}{escape(str(cluster))}[/]")
    if len(clusters) > MAX_CLUSTERS:
        console.print(f"  and {len(clusters) - MAX_CLUSTERS} more; --json lists them all")
    for group in report.split_groups:
        console.print(f"  [red]leak: group {escape(str(group))}[/]")
