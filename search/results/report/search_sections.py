"""The sections of a report about the search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS
from search.results.charts import parameters, plots
from search.results.documents import Block, Charts, Section, Table, Text
from search.results.formatting import (
    MISSING,
    format_count,
    format_duration,
    format_number,
)
from search.spec.formatting import format_component

Facts = Mapping[str, Any]


def missing_file(name: str, consequence: str) -> Text:
    """Return a warning about a file of ``final/`` that was deleted."""
    text = (
        f"final/{name} is missing, so {consequence}. The command lesionsearch final with the "
        "option --again writes it again; that is one more test evaluation."
    )
    return Text(text, "warning")


def search_sections(facts: Facts) -> Iterator[Section]:
    """Yield the sections about the search. facts: of ``report_facts``."""
    search, test = facts["search"], facts["test"]
    selected = facts["selected"] and facts["selected"]["trial"]
    trials = search["trials"]
    yield Section("trials", "Trials", list(_trials(search, selected)))
    caption = (
        "Validation Dice of each trial by its number. ★ is the selected trial. Values below the "
        "axis are at its lower edge. Closed trials are not shown."
    )
    chart = partial(plots.history_chart, trials=trials, selected=selected)
    yield Section("history", "Optimization history", [Charts([(chart, caption)])])
    folds = facts["data"]["folds"]
    caption = "Validation Dice by epoch" + (
        f", of the first of {len(folds)} folds" if folds else ""
    )
    caption += ". A mark is the end of a pruned or failed trial."
    curves = partial(plots.curves_chart, trials=trials, selected=selected)
    blocks: list[Block] = [Charts([(curves, caption)])]
    if test["metrics"] and "history.csv" in test["missing"]:
        blocks.append(missing_file("history.csv", "the curves of the retraining are not known"))
    elif test["metrics"]:
        network = "tested network"
        if test["metrics"].get("ensemble"):
            network = "chosen configuration, of its best seed"
        caption = f"Training of the {network}. ★ is the epoch whose weights were kept."
        if facts["reproduction"]["spec"]["final"]["fit_on"] == "train_val":
            caption += " Its validation images were trained on, so "
            caption += "that curve does not show generalization."
        chart = partial(
            plots.retraining_chart, epochs=test["retraining"], kept_epoch=test["kept_epoch"]
        )
        blocks += [Text("Retraining", "heading"), Charts([(chart, caption)])]
    yield Section("curves", "Learning curves", blocks)
    rows = [[name, f"{share:.2f}"] for name, share in search["importances"].items()]
    table = Table("importance-shares", ("Parameter", "Share of the importance>"), rows)
    note = Text(search["importance_note"])
    yield Section("importances", "Parameter importances", [table, note])
    yield Section("slices", "Dice by parameter", list(_parameters(search, selected)))


def _trials(search: Facts, selected: int | None) -> Iterator[Block]:
    leaders, budget = search["leaderboard"], search["budget"]["trials"]
    numbers = [row["number"] for row in leaders]
    complete = format_count(search["complete"], "complete trial")
    if not leaders:
        yield Text("There is no complete trial, so there is no leaderboard.")
    yield Table(
        "leaderboard",
        ("Trial>", "Val. Dice>", *map(str.capitalize, DEFAULT_COMPONENTS), "Params>", "Epochs>",
         "Seconds>"),
        [
            [str(row["number"]), format_number(row["dice"]),
             *(_option_cell(family, row["options"][family]) for family in DEFAULT_COMPONENTS),
             f"{row['model_params'] / 1e6:.2f} M", format_number(row["epochs"], ",.0f"),
             format_number(row["seconds"], ",.0f")]
            for row in leaders
        ],
        f"The best {len(leaders)} of {complete} by validation Dice at the training's image size. "
        "★ marks the selected one.",
        numbers.index(selected) if selected in numbers else None,
        wide=True,
    )  # fmt: skip
    yield Text("States and time", "heading")
    seconds = {row["state"]: row["seconds"] for row in search["time"]}
    total = sum(seconds.values())
    yield Table(
        "states",
        ("State", "Trials>", "Worker seconds>", "Share of time>"),
        [
            [state.capitalize(), str(n), format_number(seconds.get(state), ",.0f"),
             format_number(seconds[state] / total if total and state in seconds else None, ".1%")]
            for state, n in search["counts"].items()
        ],
        "Worker time includes starting and loading data; the times of several workers are added.",
    )  # fmt: skip
    yield Text(
        f"{search['finished']} of {format_count(budget, 'trial')} in the budget are "
        "finished. Pruned: stopped early as unpromising. Closed: without a result and without cost "
        "to the budget, because the configuration had been tried, a constraint excludes it, or the "
        "training was interrupted and requeued."
    )
    if search["pruning"]["trials"]:
        yield Text(_describe_pruning(search["pruning"]))
    reasons = [
        [row["state"], row["reason"], str(row["count"]), row["numbers"], row["message"] or MISSING]
        for row in search["reasons"]
    ]
    if reasons:
        yield Text("Reasons of failed, closed and stopped trials", "heading")
    columns = ("State", "Reason", "Trials>", "Numbers", "Message of the first")
    yield Table("reasons", columns, reasons, wide=True)
    baselines = [
        [row["baseline"], str(row["number"]), row["state"], format_number(row["dice"]),
         format_number(row["difference"], "+.4f")]
        for row in search["baselines"]
    ]  # fmt: skip
    if baselines:
        yield Text("Baselines among the trials", "heading")
    columns = ("Baseline", "Trial>", "State", "Val. Dice>", "Difference to the best>")
    caption = "By validation Dice. The test images were not used."
    yield Table("baselines", columns, baselines, caption)


def _describe_pruning(pruning: Facts) -> str:
    text = f"Pruning stopped {format_count(pruning['trials'], 'trial')} early"
    saved, spent = pruning["seconds_saved"], pruning["seconds_spent"]
    if saved is None or not pruning["timed"]:
        return (
            f"{text}; the time saved is unknown, because there is no complete trial or no recorded "
            "time."
        )
    duration = f" ({format_duration(saved)})" if saved >= 120 else ""
    these = "this trial" if pruning["trials"] == 1 else "these trials"
    return (
        f"{text} and saved about {saved:,.0f} s of training{duration}; {these} took "
        f"{spent:,.0f} s. The estimate assumes that a pruned trial would have needed "
        f"{pruning['mean_epochs']:.1f} epochs, the mean of the complete trials, each as long as "
        "its own epochs."
    )


def _parameters(search: Facts, selected: int | None) -> Iterator[Block]:
    trials, names = search["trials"], search["varied_params"]
    if not names:
        return
    important = ", the most important ones first" if search["importances"] else ""
    caption = (
        f"Validation Dice by parameter{important}: ● complete, ◆ pruned (last reported value), "
        "★ the selected trial. Values below the axis are not shown."
    )
    values = {"trials": trials, "names": names, "selected": selected}
    yield Charts([(partial(parameters.slices_chart, **values), caption)])
    if search["complete"] > 1:
        caption = (
            "One line for each complete trial, through its parameters to its Dice. A line passes "
            "below an axis if the trial does not have that parameter."
        )
        yield Text("Parallel coordinates", "heading")
        yield Charts([(partial(parameters.parallel_chart, **values), caption)])


def _option_cell(family: str, component: Facts) -> tuple[str, str]:
    """Return the name of a component and its parameters."""
    name, _, params = format_component(family, component).removesuffix(")").partition("(")
    return name, params.replace("=", " ")  # so that a browser can break the line
