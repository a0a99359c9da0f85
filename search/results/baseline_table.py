"""Table of the baselines: scores with intervals and paired differences to the best one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from optuna.trial import FrozenTrial
from pydantic import AfterValidator, FiniteFloat
from typing_extensions import TypedDict

from lesionseg.errors import InputError
from lesionseg.metrics import compare, overlap, surface
from search.results.documents import Table
from search.spec import baselines
from search.storage.stored_files import Name, read_csv_file, read_json_file, require_keys
from search.storage.trial_records import State, TrialAttr, state_of

#: Scores of each image, in the order of the columns.
SCORES = (
    *overlap.METRICS,
    *(f"{name}{unit}" for name in surface.SURFACE_DISTANCES for unit in ("", "_percent")),
)
LEGEND = (
    "Means over the test images at their masks' own sizes. The 95% intervals are from a bootstrap "
    "over patients or lesions; it is paired for differences. The best baseline is the one with the "
    "highest test Dice, so its own score is slightly optimistic. VS: volume similarity. ASSD, HD, "
    "HD95: surface distances in pixels of the mask's own size. Train s: seconds of training. "
    "Images/s: the network alone."
)


@dataclass(frozen=True)
class TestResult:
    """Test evaluation of one trial: images per second and one row per image."""

    __test__ = False  # no test class of pytest

    images_per_second: Mapping[str, float]
    images: Sequence[Mapping[str, str]]


class Speed(TypedDict):
    """Images per second of the network alone, in batches and one by one."""

    batch: FiniteFloat
    single: FiniteFloat


class StoredResult(TypedDict):
    """The keys of a result.json that are read; it also has the keys of metrics.json."""

    speed: Speed


def _check_scores(row: dict[str, str]) -> dict[str, str]:
    for key in SCORES:
        if not math.isfinite(float(row[key])):
            raise ValueError(f"{key} must be a finite number")
    return row


#: A row of per_image.csv.
ImageRow = Annotated[
    dict[str, Name], require_keys("name", "group", *SCORES), AfterValidator(_check_scores)
]


def read_results(folder: Path) -> dict[int, TestResult]:
    """Return the test results in the folder of a ``baselines run`` by trial number.

    Raises:
        InputError: a file is damaged, or its images differ from those of the first.
    """
    results: dict[int, TestResult] = {}
    names: list[str] = []
    for path in sorted(folder.glob("results/[0-9]*/result.json")):
        if not path.parent.name.isdecimal():
            continue
        remedy = (
            f"delete {path.parent}; `lesionsearch baselines run` tests the trial again, with one "
            "more test evaluation"
        )
        speed = read_json_file(path, StoredResult, remedy)["speed"]
        table = path.with_name("per_image.csv")
        images = read_csv_file(table, ImageRow, remedy)
        names = names or [row["name"] for row in images]
        if names != [row["name"] for row in images]:
            raise InputError(
                f"{table}: damaged: the images differ from the other results'; {remedy}"
            )
        results[int(path.parent.name)] = TestResult(
            {"batch": speed["batch"], "single": speed["single"]}, images
        )
    return results


@dataclass(frozen=True)
class BaselineResult:
    """Results of one baseline; means over its trainings.

    Attributes:
        baseline: its name.
        trials: numbers of its tested trials; empty if it was not tested.
        message: why it was not tested.
        costs: ``val_dice``: validation Dice of the best epoch; ``epochs``, ``best_epoch``: of the
            first training; ``params``: trainable parameters; ``macs``: multiply-adds per image;
            ``train_seconds``; ``peak_memory``: bytes, the maximum over the trainings;
            ``images_per_second`` and ``images_per_second_single``.
        dice: mean test Dice of each training.
        means: mean test scores by name.
        ci95: their intervals from a bootstrap over groups.
        difference: its Dice minus that of the reference; None for the reference itself.
        p: of the Wilcoxon signed-rank test over groups. p_holm: corrected for all comparisons.
    """

    baseline: str
    trials: tuple[int, ...] = ()
    message: str = ""
    costs: Mapping[str, Any] = field(default_factory=dict)
    dice: tuple[float, ...] = ()
    means: Mapping[str, float] = field(default_factory=dict)
    ci95: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    difference: compare.PairedDifference | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def is_tested(self) -> bool:
        return bool(self.trials)


def compare_baselines(
    results: Mapping[int, TestResult],
    trials: Sequence[FrozenTrial],
    reference: Mapping[str, float] | None = None,
) -> list[BaselineResult]:
    """Return one result per baseline, best mean test Dice first; those without a test come last.

    Args:
        results: test evaluations by trial number.
        trials: all trials of the study.
        reference: Dice by image that the baselines are compared with; by default the best one's.
    """
    by_baseline: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if name := trial.user_attrs.get(TrialAttr.BASELINE):
            by_baseline.setdefault(name, []).append(trial)
    untested, tested = [], []
    for name, members in by_baseline.items():
        evaluated = [trial for trial in members if trial.number in results]
        if evaluated:
            tested.append(_summarize(name, evaluated, results))
        else:
            untested.append(BaselineResult(name, message=_missing_reason(members[-1])))
    tested.sort(key=lambda result: -result.means["dice"])
    return [*_compare(tested, results, reference), *untested]


def _dice_cell(result: BaselineResult) -> str:
    low, high = result.ci95["dice"]
    cell = f"{result.means['dice']:.4f} ({low:.4f} .. {high:.4f})"
    if len(result.dice) > 1:
        cell += f", {len(result.dice)} seeds {min(result.dice):.4f} .. {max(result.dice):.4f}"
    return cell


def _difference_cell(result: BaselineResult) -> str:
    paired = result.difference
    return (
        f"{paired.difference:+.4f} ({paired.low:+.4f} .. {paired.high:+.4f})" if paired else "best"
    )


#: Columns of the table: title and cell of a tested baseline.
COLUMNS: Mapping[str, Callable[[BaselineResult], str]] = {
    "baseline": lambda result: result.baseline,
    "test Dice (95%)": _dice_cell,
    "difference to best (95%)": _difference_cell,
    "Jaccard": lambda result: f"{result.means['jaccard']:.4f}",
    "precision": lambda result: f"{result.means['precision']:.4f}",
    "recall": lambda result: f"{result.means['recall']:.4f}",
    "VS": lambda result: f"{result.means['volume_similarity']:.4f}",
    "ASSD px": lambda result: f"{result.means['assd']:.1f}",
    "HD px": lambda result: f"{result.means['hd']:.1f}",
    "HD95 px": lambda result: f"{result.means['hd95']:.1f}",
    "val Dice": lambda result: f"{result.costs['val_dice']:.4f}",
    "params M": lambda result: f"{result.costs['params'] / 1e6:.2f}",
    "GMACs": lambda result: f"{result.costs['macs'] / 1e9:.2f}",
    "train s": lambda result: f"{result.costs['train_seconds']:.0f}",
    "images/s batch / single": lambda result: (
        "{images_per_second:.0f} / {images_per_second_single:.0f}".format(**result.costs)
    ),
}
COLUMN_TITLES = tuple(COLUMNS)


def format_cells(result: BaselineResult) -> list[str]:
    """Return a row's cells as text, in the order of COLUMN_TITLES."""
    if result.is_tested:
        return [cell(result) for cell in COLUMNS.values()]
    return [result.baseline, result.message, *[""] * (len(COLUMNS) - 2)]


def format_markdown(results: Sequence[BaselineResult]) -> str:
    """Return the table as Markdown, with a legend."""
    rows = list(map(format_cells, results))
    return Table("baselines", COLUMN_TITLES, rows, LEGEND).to_markdown() + "\n"


def csv_row(result: BaselineResult) -> dict[str, object]:
    """Return every number of a result; fewer keys if it was not tested."""
    row: dict[str, object] = {
        "baseline": result.baseline,
        "source": baselines.get_baseline(result.baseline).source,
        "trainings": len(result.dice),
        "message": result.message,
    }
    for name, (low, high) in result.ci95.items():
        row |= {name: result.means[name], f"{name}_low": low, f"{name}_high": high}
    paired = result.difference
    return row | {
        "difference": paired and paired.difference,
        "difference_low": paired and paired.low,
        "difference_high": paired and paired.high,
        "dice_by_training": " ".join(f"{dice:.6f}" for dice in result.dice),
        **result.costs,
    }


def _summarize(
    name: str, trials: Sequence[FrozenTrial], results: Mapping[int, TestResult]
) -> BaselineResult:
    attrs = [trial.user_attrs for trial in trials]
    evaluations = [results[trial.number] for trial in trials]
    scores = {score: _mean_scores(evaluations, score) for score in SCORES}
    groups = [row["group"] for row in evaluations[0].images]
    costs = {
        "val_dice": fmean(a["val"]["dice"] for a in attrs),
        **{key: attrs[0][key] for key in ("best_epoch", "epochs", "params", "macs")},
        "train_seconds": fmean(a["seconds"] for a in attrs),
        "peak_memory": max(a["peak_memory"] for a in attrs),
        "images_per_second": fmean(e.images_per_second["batch"] for e in evaluations),
        "images_per_second_single": fmean(e.images_per_second["single"] for e in evaluations),
    }
    return BaselineResult(
        name,
        tuple(trial.number for trial in trials),
        costs=costs,
        dice=tuple(float(_mean_scores([each], "dice").mean()) for each in evaluations),
        means={key: float(values.mean()) for key, values in scores.items()},
        ci95=compare.bootstrap_intervals(scores, groups),
    )


def _mean_scores(evaluations: Sequence[TestResult], name: str) -> overlap.Floats:
    """Return a score of each image, float64 [images], as mean over the trainings."""
    scores = [[float(row[name]) for row in each.images] for each in evaluations]
    return np.asarray(np.mean(scores, axis=0), np.float64)


def _compare(
    tested: Sequence[BaselineResult],
    results: Mapping[int, TestResult],
    reference: Mapping[str, float] | None,
) -> list[BaselineResult]:
    """Add differences and p-values to results, which are sorted by Dice."""
    if not tested:
        return []
    dice = [_mean_scores([results[n] for n in each.trials], "dice") for each in tested]
    images = results[tested[0].trials[0]].images
    groups = [row["group"] for row in images]
    compared = np.array([reference[i["name"]] for i in images]) if reference else dice[0]
    first = 0 if reference else 1
    p_values = [compare.wilcoxon_p_value(compared, each, groups) for each in dice[first:]]
    rows = zip(
        tested[first:], dice[first:], p_values, compare.adjust_p_values(p_values), strict=True
    )
    return [*tested[:first]] + [
        replace(each, difference=compare.paired_difference(d, compared, groups), p=p, p_holm=holm)
        for each, d, p, holm in rows
    ]


def _missing_reason(trial: FrozenTrial) -> str:
    state = state_of(trial)
    if state == State.COMPLETE:
        return "trained on another host"
    return str(trial.user_attrs.get(TrialAttr.MESSAGE) or state)
