"""How a report names its numbers, and how it writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lesionseg.metrics import JACCARD_THRESHOLD
from lesionseg.registry import FAMILIES
from lesionseg.space import spelt

#: Stands where there is no number.
NOTHING = "\N{EN DASH}"

#: For each metric its name for people and its definition for one image.
DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "dice": ("Dice", "2 TP / (2 TP + FP + FN)"),
    "jaccard": ("Jaccard", "TP / (TP + FP + FN)"),
    "thresholded_jaccard": (
        "Thresholded Jaccard",
        f"Jaccard, counted 0 where it is below {JACCARD_THRESHOLD}",
    ),
    "precision": ("Precision", "TP / (TP + FP)"),
    "recall": ("Recall", "TP / (TP + FN), also called sensitivity"),
    "specificity": ("Specificity", "TN / (TN + FP)"),
    "accuracy": ("Accuracy", "(TP + TN) / (TP + FP + FN + TN)"),
    "volume_similarity": ("Volume similarity", "1 - |FN - FP| / (2 TP + FP + FN)"),
    "assd": ("Average symmetric surface distance", "pixels at the mask's own size"),
    "assd_percent": ("Average symmetric surface distance", "percent of the image's diagonal"),
    "hd": ("Hausdorff distance", "pixels at the mask's own size"),
    "hd_percent": ("Hausdorff distance", "percent of the image's diagonal"),
    "hd95": ("95% Hausdorff distance", "pixels at the mask's own size"),
    "hd95_percent": ("95% Hausdorff distance", "percent of the image's diagonal"),
    "average_precision": ("Average precision", "area under the precision-recall curve of pixels"),
    "calibration_error": (
        "Calibration error",
        "how far predicted probabilities lie from observed frequencies; less is better",
    ),
}


def score(value: float | None) -> str:
    """Four digits, or a dash."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.4f}"


def interval(low: float | None, high: float | None) -> str:
    """``0.8123 to 0.8456``, or a dash."""
    return NOTHING if low is None or high is None else f"{score(low)} to {score(high)}"


def millions(count: int | None) -> str:
    """``1.93 M``, or a dash."""
    return NOTHING if count is None else f"{count / 1e6:.2f} M"


def gap(difference: float | None) -> str:
    """With its sign."""
    if difference is None:
        return NOTHING
    return f"{difference:+.4f}".replace("-", "\N{MINUS SIGN}")


def whole(value: float | None) -> str:
    """Rounded, with separators: ``1,234``; or a dash."""
    return NOTHING if value is None else f"{value:,.0f}"


def per_cent(share: float | None) -> str:
    """``12.3%``, or a dash."""
    return NOTHING if share is None else f"{100 * share:.1f}%"


def probability(p: float | None) -> str:
    """A p-value: four digits, and no zero that none is."""
    if p is None:
        return NOTHING
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def span(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return NOTHING
    hours, minutes = seconds / 3600, seconds / 60
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{seconds:.0f} seconds"


def params(family: str, option: str, given: Mapping[str, Any]) -> str:
    """An option's parameters in a few words; of an optimizer the learning rate alone.

    What studies leave alone unless they name it is left out where it stands at its default.
    """
    shown = {k: v for k, v in given.items() if family != "optimizer" or k == "lr"}
    row = FAMILIES[family].get(option)
    if row is not None:
        usual = {k: row.space[k].default for k in row.settled}
        shown = {k: v for k, v in shown.items() if k not in usual or v != usual[k]}
    return ", ".join(f"{key} {_short(value)}" for key, value in shown.items())


def _short(value: object) -> str:
    if isinstance(value, bool):
        return spelt(value)
    return f"{value:.2g}" if isinstance(value, float) else str(value)


#: What templates call them.
FILTERS = {
    "score": score, "millions": millions, "gap": gap, "whole": whole, "per_cent": per_cent,
    "probability": probability, "span": span,
}  # fmt: skip
