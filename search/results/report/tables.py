"""The tables of the report, built once for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS
from search.results.documents import Cell, Table
from search.results.formatting import (
    MISSING,
    MetricScore,
    format_count,
    format_difference,
    format_integer,
    format_interval,
    format_millions,
    format_p_value,
    format_params,
    format_percent,
    format_score,
)

Facts = Mapping[str, Any]


def report_tables(facts: Facts) -> dict[str, Table]:
    """Return the tables by id. Those without content are left out. facts: of ``report_facts``."""
    tables = [
        *_test_tables(facts["test"]),
        *_comparison_tables(facts["comparison"], facts["test"]["metrics"]),
        *_data_tables(facts["data"]),
        *_search_tables(facts["search"], facts["selected"]),
        _environment_table(facts["environment"], facts["test"]["metrics"]),
    ]
    return {table.id: table for table in tables if table.rows}


def common_options(leaderboard: Sequence[Facts]) -> dict[str, str]:
    """Return the options that all leaders have in common, without searched parameters."""
    common: dict[str, str] = {}
    for component in DEFAULT_COMPONENTS if len(leaderboard) > 1 else ():
        cells = {_option_cell(component, row) for row in leaderboard}
        if len(cells) == 1 and not (cell := cells.pop())[1]:
            common[component] = cell[0]
    return common


def _test_tables(test: Facts) -> Iterator[Table]:
    final = test["metrics"]
    if not final:
        return
    patients = format_count(final["test"]["groups"], "patient or lesion", "patients or lesions")
    n, evaluations = final["test"]["n"], test["test_evaluations"]
    yield Table(
        "scores",
        ("Metric", "Mean>", "95% interval>", "Definition, for one image"),
        [
            [score.name, score.mean_text, score.interval_text, score.definition]
            for score in (MetricScore(**row) for row in test["scores"])
        ],
        f"{format_count(n, 'test image', 'test images')} of {patients}; "
        f"{format_count(evaluations, 'test evaluation', 'test evaluations')}.",
        wide=True,
    )
    yield Table(
        "confusion",
        ("", "Predicted lesion>", "Predicted skin>"),
        [
            ["True lesion", *_confusion_cells(final["confusion"], "tp", "fn")],
            ["True skin", *_confusion_cells(final["confusion"], "fp", "tn")],
        ],
        "Confusion matrix: shares of an image's pixels, averaged over the test images. The "
        "percentage of the row is not the mean recall or specificity of the images.",
    )
    val, folds = final["val"], final["val"]["folds"]
    reproduced = {None: "not applicable", True: "yes", False: "no"}[val["reproduced"]]
    rows = [[f"Search, trial {final['trial']}", format_score(val["search"])]]
    if folds:
        dice = ", ".join(map(format_score, folds["dice"]))
        rows.append([f"Its {len(folds['dice'])} folds", dice])
        rows.append(["Standard deviation of the folds", format_score(folds["deviation"])])
    rows += [
        ["Retrained" + (" on the first fold" if folds else ""), format_score(val["retrained"])],
        ["Gap", format_difference(val["gap"])],
        [f"Reproduced within {test['tolerance']}", reproduced],
    ]
    yield Table("validation", ("Validation Dice", ">"), rows)


def _confusion_cells(shares: Mapping[str, float], *keys: str) -> Iterator[Cell]:
    total = sum(shares[key] for key in keys)
    for key in keys:
        of_row = shares[key] / total if total else 0.0
        yield format_percent(shares[key], 2), f"{format_percent(of_row)} of the row"


def _comparison_tables(comparison: Facts | None, final: Facts | None) -> Iterator[Table]:
    if not comparison:
        return
    rows: list[list[Cell]] = []
    reference = comparison["reference"]
    if reference is None and final:
        interval = format_interval(*final["ci95"]["dice"])
        rows.append(
            ["this study", format_score(final["test"]["dice"]), interval, *[MISSING] * 4,
             format_millions(final["params"])]
        )  # fmt: skip
    for row in comparison["rows"]:
        low, high = row["difference_low"], row["difference_high"]
        between = f"{format_difference(low)} to {format_difference(high)}"
        rows.append(
            [row["baseline"], format_score(row["dice"]), format_interval(row["low"], row["high"]),
             format_difference(row["difference"]), MISSING if low is None else between,
             format_p_value(row["p"]), format_p_value(row["p_holm"]),
             format_millions(row["model_params"])]
        )  # fmt: skip
    names = [row[0] for row in rows]
    patients = format_count(comparison["groups"], "patient or lesion", "patients or lesions")
    yield Table(
        "systems",
        ("System", "Test Dice>", "95% interval>", "Difference>", "95% interval>", "p>", "p, Holm>",
         "Parameters>"),
        rows,
        f"{format_count(comparison['images'], 'test image', 'test images')} of {patients}. "
        f"Difference: Dice of {reference or 'this study'} minus Dice of the system.",
        highlighted=names.index(reference or "this study"),
        wide=True,
    )  # fmt: skip


def _data_tables(data: Facts) -> Iterator[Table]:
    summary = data["summary"]
    if not summary:
        splits = [[split, f"{n:,}"] for split, n in data["split"].items()]
        yield Table("splits", ("Split", "Images>"), splits)
        return
    yield Table(
        "splits",
        ("Split", "Images>", "Patients or lesions>", "Lesion area, median>", "5% to 95%>",
         "Empty masks>", "Full masks>"),
        [
            [split, f"{row['images']:,}", f"{row['groups']:,}", *_area_cells(row["area"]),
             str(row["empty"]), str(row["full"])]
            for split, row in summary["parts"].items()
        ],
        f"{format_count(summary['pairs'], 'pair', 'pairs')} of image and mask, layout "
        f"{data['layout']}; {summary['used']:,} of them used. Lesion area: the mask's share of the "
        f"image.",
    )  # fmt: skip
    edges = [f"{100 * edge:g}" for edge in summary["edges"]]
    yield Table(
        "areas",
        ("Split", *(f"{a} to {b}%>" for a, b in zip(edges[:-1], edges[1:], strict=True))),
        [[split, *map(str, row["area"]["counts"])] for split, row in summary["parts"].items()],
        "Images by lesion area",
    )
    yield Table(
        "sets",
        ("Data set", "Pairs>", "Train>", "Val>", "Test>", "Lesion in another split elsewhere>"),
        [
            [row["name"], *(f"{row[key]:,}" for key in ("pairs", "train", "val", "test")),
             str(row["conflicting"])]
            for row in summary.get("sets", [])
        ],
        "Images by data set",
    )  # fmt: skip


def _search_tables(search: Facts, selected: Facts | None) -> Iterator[Table]:
    leaders = search["leaderboard"]
    common = common_options(leaders)
    components = [component for component in DEFAULT_COMPONENTS if component not in common]
    numbers = [row["number"] for row in leaders]
    complete = format_count(search["complete"], "complete trial", "complete trials")
    caption = (
        f"The best {len(leaders)} of {complete} by validation Dice at the training's image size. "
        f"★ marks the selected one."
    )
    if common:
        options = ", ".join(f"{component} {option}" for component, option in common.items())
        caption += f" All have {options}."
    yield Table(
        "leaderboard",
        (
            "Trial>",
            "Val. Dice>",
            *map(str.capitalize, components),
            "Params>",
            "Epochs>",
            "Seconds>",
        ),
        [
            [str(row["number"]), format_score(row["dice"]),
             *(_option_cell(component, row) for component in components),
             format_millions(row["model_params"]), format_integer(row["epochs"]),
             format_integer(row["seconds"])]
            for row in leaders
        ],
        caption,
        numbers.index(selected["trial"]) if selected and selected["trial"] in numbers else None,
        wide=True,
    )  # fmt: skip
    seconds = {row["state"]: row["seconds"] for row in search["time"]}
    total = sum(seconds.values())
    yield Table(
        "states",
        ("State", "Trials>", "Worker seconds>", "Share of time>"),
        [
            [state.capitalize(), str(n), format_integer(seconds.get(state)),
             format_percent(seconds[state] / total if total and state in seconds else None)]
            for state, n in search["counts"].items()
        ],
        "Worker time includes starting and loading data; the times of several workers are added.",
    )  # fmt: skip
    yield Table(
        "reasons",
        ("State", "Reason", "Trials>", "Numbers", "Message of the first"),
        [
            [row["state"], row["reason"], str(row["count"]), row["numbers"],
             row["message"] or MISSING]
            for row in search["reasons"]
        ],
        wide=True,
    )  # fmt: skip
    yield Table(
        "baselines",
        ("Baseline", "Trial>", "State", "Val. Dice>", "Difference to the best>"),
        [
            [row["baseline"], str(row["number"]), row["state"], format_score(row["dice"]),
             format_difference(row["difference"])]
            for row in search["baselines"]
        ],
        "By validation Dice. The test images were not used.",
    )  # fmt: skip
    yield Table(
        "importance-shares",
        ("Parameter", "Importance>"),
        [[name, f"{share:.2f}"] for name, share in search["importances"].items()],
    )


def _area_cells(area: Facts) -> list[str]:
    """Return median and range of the lesion area."""
    p5, median, p95 = (format_percent(area[key]) for key in ("p5", "median", "p95"))
    return [median, f"{p5} to {p95}"]


def _environment_table(environment: Facts, final: Facts | None) -> Table:
    rows: list[list[Cell]] = []
    if final:
        rows = [
            ["Trainable parameters", f"{final['params']:,}"],
            ["Seed of the tested network", str(final["seed"])],
            ["Retraining", f"{final['seconds']:,.1f} s"],
            ["Prediction, network alone", f"{final['images_per_second']:,.1f} images/s"],
        ]
    rows.append(["Seed of the study", str(environment["seed"])])
    for row in environment["searched_on"]:
        share = f" x {row['share']:.2g}" if row["share"] < 1 else ""
        threads = format_count(row["threads"], "thread", "threads")
        trials = format_count(row["trials"], "trial", "trials")
        rows.append(["Searched on", f"{row['device']}{share}, {threads}: {trials}"])
    if environment["tested_on"]:
        rows.append(["Retrained and tested on", environment["tested_on"]])
    rows += [[package, version] for package, version in environment["versions"].items()]
    return Table("environment", ("Environment", ">"), rows)


def _option_cell(component: str, row: Facts) -> tuple[str, str]:
    """Return the option of a component and its parameters."""
    option, params = next(iter(row["options"][component].items()))
    return option, format_params(component, option, params)
