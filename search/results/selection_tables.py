"""Tables and sentences about finalists and ensembles, for report, model card and console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.results.documents import Cell, Table
from search.results.formatting import MISSING, format_count, format_duration, format_number
from search.spec.formatting import format_config

#: Where the weights of a member are from, by its kind.
_ORIGINS = {"trial": "search", "final": "final"}

Facts = Mapping[str, Any]


def finalists_table(finalists: Sequence[Facts], fidelity: Facts) -> Table:
    """Return a table of the finalists with the chosen one highlighted.

    finalists: key of metrics.json. fidelity: image size and epochs of their trainings.
    """
    rows: list[list[Cell]] = [
        [
            str(row["trial"]),
            format_number(row["search"]),
            ", ".join(map(format_number, row["dice"])),
            format_number(row["mean"]),
            format_number(row["deviation"]),
            format_duration(row["seconds"]),
        ]
        for row in finalists
    ]
    seeds = sorted({len(row["dice"]) for row in finalists})
    times = format_count(seeds[-1], "seed")
    if len(seeds) > 1:
        times = f"{seeds[0]} to {times}"
    trials = "best trial"
    if len(finalists) > 1:
        trials, times = f"best {len(finalists)} trials", f"{times} each"
    return Table(
        "finalists",
        ("Trial>", "Val. Dice, search>", "Val. Dice, each seed>", "Mean>", "Deviation>",
         "Training>"),
        rows,
        f"The {trials} of the search, retrained with {times} at "
        f"{format_fidelity(fidelity)}. ★ marks the chosen one: it has the highest mean.",
        next((i for i, row in enumerate(finalists) if row["chosen"]), None),
        wide=True,
    )  # fmt: skip


def describe_optimism(optimism: Facts, finalists: Sequence[Facts]) -> str:
    """Return how much of the search's lead remained after the retraining; empty if unknown."""
    best = max(finalists, key=lambda row: row["search"])["trial"]
    sentences = []
    if optimism["search_lead"] is not None and optimism["final_lead"] is not None:
        sentences.append(_describe_lead(best, optimism["search_lead"], optimism["final_lead"]))
    if optimism["gap"] is not None:
        sentences.append(
            f"The search value of trial {best} is "
            f"{_place(optimism['gap'])} the mean of its retrainings."
        )
    if sentences:
        curse = "The best of many noisy values is too high on average (winner's curse)"
        choice = ", so the choice was made by the retrainings" if len(finalists) > 1 else ""
        sentences.append(f"{curse}{choice}.")
    return " ".join(sentences)


def _describe_lead(trial: int, before: float, after: float) -> str:
    remaining = ""
    if before > 0:
        share = f"{min(after / before, 1):.0%}" if after > 0 else "none"
        remaining = f": {share} of the lead remained"
    return (
        f"In the search, trial {trial} was {_place(before)} the mean of the other finalists, after "
        f"the retraining {_place(after)} it{remaining}."
    )


def _place(difference: float) -> str:
    return f"{abs(difference):.4f} {'below' if difference < 0 else 'above'}"


def members_table(ensemble: Facts) -> Table:
    """Return a table of the members. ensemble: key of metrics.json."""
    is_selected = ensemble["gain"] is not None
    caption = (
        "The members were added one by one while the gain in validation Dice was larger than its "
        "standard error; a network that was added several times has a larger weight. The "
        "ensemble's probability is the weighted mean of theirs."
        if is_selected
        else "The members are trainings of one configuration with several seeds. They were not "
        "selected, because no validation images are left: the ensemble's probability is their "
        "plain mean."
    )
    return Table(
        "members",
        ("Trial>", "Trained in", "Seed>", "Weight>", "Val. Dice>", "Configuration"),
        [
            [
                str(row["trial"]),
                _ORIGINS[row["kind"]],
                str(row["seed"]),
                f"{row['weight']:.3f}",
                format_number(row["dice"]),
                format_config(row["config"]),
            ]
            for row in ensemble["members"]
        ],
        caption,
        wide=True,
    )


def costs_table(ensemble: Facts) -> Table:
    """Return a table of the ensemble beside its best single network: Dice, speed and size."""
    return Table(
        "ensemble-cost",
        ("Network", "Val. Dice>", "Images/s>", "MB>"),
        [
            [
                title,
                format_number(ensemble[f"{key}dice"]),
                f"{ensemble[f'{key}images_per_second']:,.1f}",
                f"{ensemble[f'{key}mb']:,.1f}",
            ]
            for title, key in (("Ensemble", ""), ("Best single network", "best_"))
        ],
        "Images/s: the network alone, in batches. MB: the file of its weights.",
    )


def describe_gain(ensemble: Facts) -> str:
    """Return the gain of an ensemble over its best single network in validation Dice."""
    if ensemble["gain"] is None:
        return MISSING
    gain = format_number(ensemble["gain"], "+.4f")
    error = ensemble["standard_error"]
    return gain if error is None else f"{gain}, standard error {format_number(error)}"


def format_fidelity(fidelity: Facts) -> str:
    """Format image size and epochs of a training: ``128 px, 12 epochs``."""
    return f"{fidelity['image_size']} px, {format_count(fidelity['epochs'], 'epoch')}"
