"""The section ``comparison`` of report.json: baselines tested on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    groups = {row["name"]: row["group"] for row in next(iter(results.values())).images}
    reference = {image["name"]: image["dice"] for image in images} or None
    if reference and reference.keys() != groups.keys():
        raise InputError(
            f"--against: {place}: tested on other images ({len(groups)} there, {len(images)} "
            f"here); run the baselines on the same data and split"
        )
    trials = trial_records.all_trials(
        load_study(place, storage=storage if place == folder else None)
    )
    compared = [row for row in compare_baselines(results, trials, reference) if row.is_tested]
    if not compared:
        return None
    return {
        "reference": None if reference else compared[0].baseline,
        "images": len(groups),
        "groups": len(set(groups.values())),
        "rows": list(map(_row, compared)),
    }


def _row(result: BaselineResult) -> dict[str, Any]:
    """Return one row; the difference is the reference's Dice minus the baseline's."""
    low, high = result.ci95["dice"]
    paired = result.difference
    return {
        "baseline": result.baseline,
        "dice": result.means["dice"],
        "low": low,
        "high": high,
        "model_params": result.params,
        "trainings": len(result.trials),
        "difference": paired and -paired.difference,
        "difference_low": paired and -paired.high,
        "difference_high": paired and -paired.low,
        "p": result.p,
        "p_holm": result.p_holm,
    }
