"""The section ``test`` of report.json: metrics.json and the files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from search.results.evaluation import read_csv
from search.results.final_report import REPRODUCTION_TOLERANCE
from search.results.formatting import format_inference, metric_scores


def final_test_facts(
    folder: Path,
    final: Mapping[str, Any] | None,
    spec: Mapping[str, Any],
    test_evaluations: Sequence[str],
) -> dict[str, Any]:
    """Return the section ``test`` of report.json (docs/report.md).

    Args:
        folder: the study's folder.
        final: content of metrics.json, if it exists.
        spec: the study's spec as plain data.
        test_evaluations: times of the test evaluations; one that failed has no metrics.json.
    """
    counted = final["test_evaluations"] if final else 0
    facts: dict[str, Any] = {
        "test_evaluations": max(counted, len(test_evaluations)),
        "tolerance": REPRODUCTION_TOLERANCE,
        "metrics": final,
    }
    if final is None:
        return facts
    images = [_image(row) for row in read_csv(folder / "final" / "per_image.csv")]
    epochs = [
        {key: float(value) for key, value in row.items()}
        for row in read_csv(folder / "final" / "history.csv")
    ]
    dice = {image["name"]: image["dice"] for image in images}
    on_train_val = spec["final"]["fit_on"] == "train_val"
    return facts | {
        "scores": [asdict(score) for score in metric_scores(final["test"], final["ci95"])],
        "inference": format_inference(final["inference"]),
        "images": images,
        "overlays": list(_overlays(final["overlays"], dice)),
        "retraining": epochs,
        "kept_epoch": _kept_epoch(epochs, last=on_train_val) if epochs else None,
    }


def _image(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts of an image; ``lesion_share``: the true lesion's share of its pixels."""
    tp, fp, fn, tn = (int(row[part]) for part in ("tp", "fp", "fn", "tn"))
    return {
        "name": row["name"],
        "group": row["group"],
        "dice": float(row["dice"]),
        "lesion_share": (tp + fn) / (tp + fp + fn + tn),
    }


def _overlays(
    overlays: Iterable[Sequence[str]], dice: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield the pictures in the order of metrics.json; a file is called best_1_NAME.png."""
    for kind, file in overlays:
        name = file.removeprefix(f"{kind}_").partition("_")[2].removesuffix(".png")
        yield {"kind": kind, "file": file, "name": name, "dice": dice.get(name)}


def _kept_epoch(epochs: Sequence[Mapping[str, float]], *, last: bool) -> int:
    """Return the epoch whose weights were kept: the first with the best Dice, or the last."""
    kept = epochs[-1] if last else max(epochs, key=lambda row: row["dice"])
    return int(kept["epoch"])
