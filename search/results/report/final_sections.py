"""The sections of a report about finalists, ensemble and disagreement of its members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from search.results.charts import plots
from search.results.documents import Block, Charts, Section, Table, Text
from search.results.formatting import format_number
from search.results.report.search_sections import missing_file
from search.results.selection_tables import (
    costs_table,
    describe_gain,
    describe_optimism,
    finalists_table,
    members_table,
)

#: Images of the largest disagreement that are listed.
LISTED_IMAGES = 5

Facts = Mapping[str, Any]


def final_sections(test: Facts, fidelity: Facts) -> Iterator[Section]:
    """Yield the sections for a tested study. test, fidelity: of ``report_facts``."""
    final = test["metrics"]
    finalists, ensemble = final.get("finalists") or [], final.get("ensemble")
    yield Section("finalists", "Finalists", list(_finalists(final, finalists, fidelity["final"])))
    if ensemble:
        yield Section("ensemble", "Ensemble", list(_ensemble(ensemble)))
        blocks = list(_disagreement(test, final.get("disagreement")))
        yield Section("disagreement", "Disagreement of the members", blocks)


def _finalists(final: Facts, finalists: list[Facts], fidelity: Facts) -> Iterator[Block]:
    if len(finalists) < 2 and not any(len(row["dice"]) > 1 for row in finalists):
        return  # the key facts have the one retraining
    yield finalists_table(finalists, fidelity)
    chosen = next((row for row in finalists if row["chosen"]), None)
    on_train_val = final["final"].get("fit_on") == "train_val"
    if chosen and len(chosen["dice"]) > 1 and not final.get("ensemble") and not on_train_val:
        yield Text(f"Seed {final['seed']}, the best of trial {chosen['trial']}, was tested.")
    if (optimism := final.get("optimism")) and (text := describe_optimism(optimism, finalists)):
        yield Text(text)


def _ensemble(ensemble: Facts) -> Iterator[Block]:
    yield members_table(ensemble)
    yield costs_table(ensemble)
    if ensemble["gain"] is not None:
        yield Text(
            "Gain in validation Dice over the best single network, mean over images: "
            f"{describe_gain(ensemble)}. The same images selected the members, so it is slightly "
            "optimistic."
        )


def _disagreement(test: Facts, disagreement: Facts | None) -> Iterator[Block]:
    correlation = format_number(disagreement["spearman"] if disagreement else None, "+.4f")
    yield Text(
        "The disagreement of an image is 1 minus the weighted mean Dice of the members' masks with "
        "the ensemble's mask. It needs no true mask, so it can point out doubtful images. Spearman "
        f"correlation with the Dice of the test images: {correlation}; \N{MINUS SIGN}1 would mean "
        "that the disagreement orders the images by their error."
    )
    if "per_image.csv" in test["missing"]:
        yield missing_file("per_image.csv", "the disagreement of each image is not known")
        return
    images = [image for image in test["images"] if image["disagreement"] is not None]
    ranking = sorted(images, key=lambda image: -image["disagreement"])
    if not ranking:
        return
    listed = ranking[:LISTED_IMAGES]
    points = [(image["disagreement"], image["dice"]) for image in ranking]
    chart = partial(plots.disagreement_chart, points=points, marked=len(listed))
    yield Charts([(chart, "Dice of each test image and the disagreement of the members.")])
    yield Table(
        "doubtful",
        ("Image", "Disagreement>", "Dice>"),
        [
            [row["name"], format_number(row["disagreement"]), format_number(row["dice"])]
            for row in listed
        ],
        "Test images of largest disagreement",
    )
