"""Results on the console: the final report and the table of the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.results.baseline_table import COLUMN_TITLES, BaselineResult, format_cells
from search.results.formatting import format_count, format_inference, metric_scores
from search.results.predict import MASKS, TABLE, PredictionSummary
from search.results.selection_tables import describe_gain
from search.spec.formatting import format_config
from search.storage.final_report import FinalReport


def print_final_report(console: Console, report: FinalReport) -> None:
    """Print scores, intervals and validation Dice. report: content of metrics.json."""
    table = Table("test", "mean", "95% interval", box=None, pad_edge=False)
    for score in metric_scores(report["test"], report["ci95"]):
        table.add_row(score.name, score.mean_text, score.interval_text)
    console.print(table)
    baseline = f" ({report['baseline']})" if report["baseline"] else ""
    console.print(
        f"{report['test']['n']} test images at their masks' own size; "
        f"trial {report['trial']}{baseline}, {format_config(report['config'])}"
    )
    console.print(
        f"inference, selected on validation images: {format_inference(report['inference'])}; "
        f"{report['images_per_second']:.0f} images/s in batches, "
        f"{report['images_per_second_single']:.0f} one by one",
        markup=False,
    )
    val = report["val"]
    if val["gap"] is not None:
        verdict = "reproduced" if val["reproduced"] else "[red]NOT reproduced[/]"
        console.print(
            f"validation Dice: search {val['search']:.4f}, retrained {val['retrained']:.4f}, "
            f"gap {val['gap']:+.4f}: {verdict}"
        )
    for line in _describe_selection(report):
        console.print(line, markup=False)
    n = report["test_evaluations"]
    console.print(f"test evaluations of this study: {n if n == 1 else f'[yellow]{n}[/]'}")


def _describe_selection(report: FinalReport) -> Iterator[str]:
    """Yield a line about the finalists and one about the ensemble, where there are several."""
    finalists, ensemble = report.get("finalists") or [], report.get("ensemble")
    chosen = next((row for row in finalists if row["chosen"]), None)
    if chosen and (len(finalists) > 1 or len(chosen["dice"]) > 1):
        deviation = chosen["deviation"]
        suffix = "" if deviation is None else f", deviation {deviation:.4f}"
        yield (
            f"finalists: trial {chosen['trial']} of {len(finalists)} has the best mean validation "
            f"Dice, {chosen['mean']:.4f} over {format_count(len(chosen['dice']), 'seed')}{suffix}; "
            f"{chosen['search']:.4f} in the search"
        )
    if ensemble:
        gain = "" if ensemble["gain"] is None else f"; validation Dice {describe_gain(ensemble)}"
        yield (
            f"ensemble of {len(ensemble['members'])} networks instead of the best one{gain}; "
            f"{ensemble['images_per_second']:.0f} images/s instead of "
            f"{ensemble['best_images_per_second']:.0f}, "
            f"{ensemble['mb']:.0f} MB instead of {ensemble['best_mb']:.0f}"
        )


def print_baseline_table(console: Console, results: Sequence[BaselineResult]) -> None:
    """Print the table of the baselines, best first."""
    table = Table(box=None, pad_edge=False)
    for title in COLUMN_TITLES:
        table.add_column(title, overflow="fold")
    for result in results:
        table.add_row(*map(escape, format_cells(result)))
    console.print(table)


def print_prediction_summary(console: Console, summary: PredictionSummary, out: Path) -> None:
    """Print the number of predicted images and their mean Dice."""
    console.print(
        f"{summary.images} images in {out}: {MASKS}/ and {TABLE}; {summary.empty} without a lesion",
        markup=False,
    )
    if summary.dice:
        console.print(f"Dice {fmean(summary.dice):.4f}, mean over {len(summary.dice)} images")
