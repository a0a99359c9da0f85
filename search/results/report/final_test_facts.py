"""What a report says of the final test, as plain data: metrics.json and the files beside it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.results.final_test import REPRODUCED
from search.results.formatting import DEFINITIONS
from search.spec.formatting import format_step


def tested(
    folder: Path,
    final: Mapping[str, Any] | None,
    spec: Mapping[str, Any],
    looks: Sequence[str],
) -> dict[str, Any]:
    """The section ``test`` of report.json (docs/report.md).

    folder: the study's. final: its metrics.json; None before there is one. looks: when the test
    images were looked at.
    """
    # A test that broke off is one more look.
    told: dict[str, Any] = {
        "looks": max(final["test_evaluations"] if final else 0, len(looks)),
        "tolerance": REPRODUCED,
        "metrics": final,
    }
    if final is None:
        return told
    images = read_rows(folder / "final" / "per_image.csv")
    epochs = [
        {key: float(value) for key, value in row.items()}
        for row in read_rows(folder / "final" / "history.csv")
    ]
    dice = {row["name"]: float(row["dice"]) for row in images}
    return told | {
        "scores": list(_scores(final)),
        "after": _after(final),
        "images": [_image(row) for row in images],
        "overlays": list(_overlays(final["overlays"], dice)),
        "retraining": epochs,
        "kept": _kept(epochs, spec["final"]["fit_on"] == "train_val") if epochs else None,
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _scores(final: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in final["test"].items():
        if key in {"n", "groups"}:
            continue
        name, definition = DEFINITIONS.get(key, (key, ""))
        low, high = final["ci95"].get(key) or (None, None)
        yield {
            "key": key, "name": name, "definition": definition, "value": value, "low": low,
            "high": high,
        }  # fmt: skip


def _after(final: Mapping[str, Any]) -> str | None:
    """What is done to the network's output, in words; None where that is not known."""
    chosen = final.get("inference")
    if not chosen:
        return None
    views = {"none": [], "flips": ["the mean over flips"], "d4": ["the mean over flips and turns"]}
    steps = views.get(chosen["tta"], [chosen["tta"]])
    return ", ".join([*steps, *map(format_step, chosen["chain"])]) or "nothing"


def _image(row: Mapping[str, str]) -> dict[str, Any]:
    """lesion: the true lesion's share of the image, None where the counts are not known."""
    lesion = None
    if {"tp", "fp", "fn", "tn"} <= row.keys():
        tp, fp, fn, tn = (int(row[part]) for part in ("tp", "fp", "fn", "tn"))
        lesion = (tp + fn) / (tp + fp + fn + tn)
    return {
        "name": row["name"],
        "group": row.get("group", row["name"]),
        "dice": float(row["dice"]),
        "lesion": lesion,
    }


def _overlays(
    listed: Iterable[Sequence[str]], dice: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """The pictures in the order of metrics.json."""
    for kind, file in listed:
        # best_1_NAME.png
        name = file.removeprefix(f"{kind}_").partition("_")[2].removesuffix(".png")
        yield {"kind": kind, "file": file, "name": name, "dice": dice.get(name)}


def _kept(epochs: Sequence[Mapping[str, float]], last: bool) -> int:
    """The epoch whose weights were kept: the first of the best Dice, or the last one."""
    best = epochs[-1] if last else max(epochs, key=lambda row: row["dice"])
    return int(best["epoch"])
