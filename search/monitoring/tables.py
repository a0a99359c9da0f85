"""Tables of data audits on the console."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lesionseg.data.duplicates.audit import DatasetAudit
from lesionseg.data.duplicates.leakage import LeakageReport
from lesionseg.data.mask_checks import describe_alignments, warn_of_inverted

#: Largest number of near-duplicate clusters to list.
MAX_CLUSTERS = 20


def print_audit(console: Console, audit: DatasetAudit) -> None:
    """Print the audit of a data set, with a line for each unusable pair and for each warning."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in audit.summarize().items():
        table.add_row(name, escape(value))
    console.print(table)
    for line in describe_alignments(audit.masks):
        console.print(line, markup=False)
    for warning in warn_of_inverted(audit.masks):
        console.print(f"[yellow]{escape(warning)}[/]")
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
