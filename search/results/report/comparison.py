"""The tested network and the published systems on the same images: who is better, and how surely.

The systems are those of a ``baselines run``; their tests lie in its folder. Two are compared by the
differences of Dice per image: a paired bootstrap interval, and Wilcoxon's test over groups, whose
p-values are raised by Holm's method for as many comparisons as the table has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg import metrics
from lesionseg.errors import InputError
from search.results.baseline_table import Row, rows
from search.results.report.final_test_facts import read_rows
from search.storage import trial_records
from search.study.lifecycle import load_study

#: One system's Dice by image, and each image's group.
Dice = Mapping[str, float]
Groups = Mapping[str, str]


def compared(
    folder: Path, images: Sequence[Mapping[str, Any]], against: Path | None, storage: str | None
) -> dict[str, Any] | None:
    """The section ``comparison`` of report.json (docs/report.md); None with nothing to compare.

    images: the final test's, as in ``test.images``. against: the folder of a ``baselines run``; None
    for the study's own folder, if it is one. Without a final test of its own the best published
    system is what the others are compared with.
    InputError where ``against`` holds no result, or they are of other test images.
    """
    place = against or folder
    found = _results(place)
    if not found:
        if against is not None:
            raise InputError(
                f"--against: {against}: holds no tested system; give the folder of a `baselines run`"
            )
        return None
    study, _ = load_study(place, storage=storage if place == folder else None)
    known = trial_records.all_trials(study)
    table = [row for row in rows(found, known) if row.tested]
    if not table:
        return None
    dice = {row.baseline: _mean_dice([found[n]["images"] for n in row.trials]) for row in table}
    groups = {image["name"]: image["group"] for image in found[table[0].trials[0]]["images"]}
    ours = {image["name"]: float(image["dice"]) for image in images}
    if ours and ours.keys() != groups.keys():
        raise InputError(
            f"--against: {place}: tested on other images ({len(groups)} there, {len(ours)} here); "
            f"run the published systems on the same data and split"
        )
    name, reference = (None, ours) if ours else (table[0].baseline, dice[table[0].baseline])
    return {
        "reference": name,
        "images": len(groups),
        "groups": len(set(groups.values())),
        "rows": _compared(table, dice, groups, reference, name),
    }


def _compared(
    table: Sequence[Row],
    dice: Mapping[str, Dice],
    groups: Groups,
    reference: Dice,
    name: str | None,
) -> list[dict[str, Any]]:
    """A row for each system; the differences are the reference's Dice less the system's."""
    others = [row.baseline for row in table if row.baseline != name]
    images = list(groups)
    drawn = [groups[i] for i in images]
    ours = np.array([reference[i] for i in images])
    theirs = {p: np.array([dice[p][i] for i in images]) for p in others}
    chances = [metrics.wilcoxon(ours, theirs[p], drawn) for p in others]
    raised = dict(zip(others, metrics.holm(chances), strict=True))
    plain = dict(zip(others, chances, strict=True))
    made = []
    for row in table:
        low, high = row.ci95["dice"]
        told = {"baseline": row.baseline, "dice": row.means["dice"], "low": low, "high": high,
                "parameters": row.params, "trainings": len(row.trials)}  # fmt: skip
        told |= dict.fromkeys(("ahead", "ahead_low", "ahead_high", "p", "p_holm"))
        if row.baseline in theirs:
            gap = metrics.paired(ours, theirs[row.baseline], drawn)
            told |= {"ahead": gap.difference, "ahead_low": gap.low, "ahead_high": gap.high}
            told |= {"p": plain[row.baseline], "p_holm": raised[row.baseline]}
        made.append(told)
    return made


def _results(folder: Path) -> dict[int, dict[str, Any]]:
    """By trial number, what each test gave; ``images``: its rows per image."""
    found = {}
    for path in sorted(folder.glob("results/*/result.json")):
        if path.parent.name.isdecimal():
            told = json.loads(path.read_text(encoding="utf-8"))
            found[int(path.parent.name)] = told | {
                "images": read_rows(path.parent / "per_image.csv")
            }
    return found


def _mean_dice(found: Sequence[Sequence[Mapping[str, str]]]) -> dict[str, float]:
    """Per image, the mean over trainings."""
    return {
        rows_[0]["name"]: float(np.mean([float(row["dice"]) for row in rows_]))
        for rows_ in zip(*found, strict=True)
    }
