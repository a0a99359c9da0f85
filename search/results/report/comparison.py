"""The section ``comparison`` of report.json: baselines tested on the same images.

Two systems are compared by their differences in Dice per image: a paired bootstrap interval, and
Wilcoxon's signed-rank test over groups with p-values corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg import metrics
from lesionseg.errors import InputError
from search.results.baseline_table import BaselineResult, TestResult, compare_baselines
from search.storage import trial_records
from search.study.opening import load_study


def comparison_facts(
    folder: Path, images: Sequence[Mapping[str, Any]], against: Path | None, storage: str | None
) -> dict[str, Any] | None:
    """Return the section ``comparison`` of report.json (docs/report.md).

    Without a final test the best baseline is the reference.

    Args:
        folder: the study's folder.
        images: images of the final test, as in ``test.images``; empty without a test.
        against: folder of a ``baselines run``; without one, the study's own results are used.
        storage: URL of the study's storage.

    Returns:
        The section; None if there are no baselines to compare.

    Raises:
        InputError: ``against`` contains no results, or they are of other test images.
    """
    place = against or folder
    results = {
        int(path.parent.name): TestResult.read(path.parent)
        for path in sorted(place.glob("results/*/result.json"))
        if path.parent.name.isdecimal()
    }
    if not results:
        if against is not None:
            raise InputError(
                f"--against: {against}: contains no test results; give the folder of a "
                f"`baselines run`"
            )
        return None
    study = load_study(place, storage=storage if place == folder else None)
    table = compare_baselines(results, trial_records.all_trials(study))
    table = [row for row in table if row.is_tested]
    if not table:
        return None
    groups = {row["name"]: row["group"] for row in results[table[0].trials[0]].images}
    dice = {row.baseline: _mean_dice(row, results) for row in table}
    reference = None if images else table[0].baseline
    reference_dice = dice[reference] if reference else {i["name"]: i["dice"] for i in images}
    if reference_dice.keys() != groups.keys():
        raise InputError(
            f"--against: {place}: tested on other images ({len(groups)} there, "
            f"{len(reference_dice)} here); run the baselines on the same data and split"
        )
    return {
        "reference": reference,
        "images": len(groups),
        "groups": len(set(groups.values())),
        "rows": _compare(table, dice, groups, reference, reference_dice),
    }


def _compare(
    table: Sequence[BaselineResult],
    dice: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, str],
    reference: str | None,
    reference_dice: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return one row per baseline; differences are the reference's Dice minus the baseline's."""
    members = list(groups.values())
    ours = np.array([reference_dice[name] for name in groups])
    others = {
        row.baseline: np.array([dice[row.baseline][name] for name in groups])
        for row in table
        if row.baseline != reference
    }
    p_values = [metrics.wilcoxon_p_value(ours, theirs, members) for theirs in others.values()]
    corrected = dict(zip(others, zip(p_values, metrics.adjust_p_values(p_values), strict=True), strict=True))
    rows = []
    for result in table:
        low, high = result.ci95["dice"]
        row = {
            "baseline": result.baseline,
            "dice": result.means["dice"],
            "low": low,
            "high": high,
            "model_params": result.params,
            "trainings": len(result.trials),
        } | dict.fromkeys(("difference", "difference_low", "difference_high", "p", "p_holm"))
        if result.baseline != reference:
            paired = metrics.paired_difference(ours, others[result.baseline], members)
            row["difference"] = paired.difference
            row["difference_low"], row["difference_high"] = paired.low, paired.high
            row["p"], row["p_holm"] = corrected[result.baseline]
        rows.append(row)
    return rows


def _mean_dice(row: BaselineResult, results: Mapping[int, TestResult]) -> dict[str, float]:
    """Return the Dice of each image by name, as mean over the trainings."""
    trainings = [results[number].images for number in row.trials]
    return {
        images[0]["name"]: float(np.mean([float(image["dice"]) for image in images]))
        for images in zip(*trainings, strict=True)
    }
