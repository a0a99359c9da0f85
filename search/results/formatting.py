"""Names and definitions of the metrics, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lesionseg.metrics.overlap import JACCARD_THRESHOLD
from lesionseg.metrics.surface import SURFACE_DISTANCES
from search.spec.formatting import format_step

#: Text for a missing number.
MISSING = "\N{EN DASH}"

_MEAN = "mean distance between the two outlines"
_LARGEST = "largest distance from a point of one outline to the other outline"
_P95 = "95th percentile of the distances between the two outlines"

#: Name and definition of each metric of one image.
DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "dice": ("Dice", "2 TP / (2 TP + FP + FN)"),
    "jaccard": ("Jaccard", "TP / (TP + FP + FN)"),
    "thresholded_jaccard": (
        "Thresholded Jaccard",
        f"Jaccard; 0 if it is below {JACCARD_THRESHOLD}",
    ),
    "precision": ("Precision", "TP / (TP + FP)"),
    "recall": ("Recall", "TP / (TP + FN), also called sensitivity"),
    "specificity": ("Specificity", "TN / (TN + FP)"),
    "accuracy": ("Accuracy", "(TP + TN) / (TP + FP + FN + TN)"),
    "volume_similarity": ("Volume similarity", "1 - |FN - FP| / (2 TP + FP + FN)"),
    "assd": ("ASSD (px)", f"average symmetric surface distance: {_MEAN}"),
    "assd_percent": ("ASSD (% of diagonal)", "ASSD in percent of the image's diagonal"),
    "hd": ("HD (px)", f"Hausdorff distance: {_LARGEST}"),
    "hd_percent": ("HD (% of diagonal)", "HD in percent of the image's diagonal"),
    "hd95": ("HD95 (px)", _P95),
    "hd95_percent": ("HD95 (% of diagonal)", "HD95 in percent of the image's diagonal"),
    "average_precision": ("Average precision", "area under the precision-recall curve of pixels"),
    "calibration_error": (
        "Calibration error",
        "expected difference between predicted probability and observed frequency; less is better",
    ),
}


@dataclass(frozen=True)
class MetricScore:
    """Mean of a metric over the test images; ``low`` and ``high``: its 95% interval, if any."""

    key: str
    name: str
    definition: str
    value: float
    low: float | None
    high: float | None

    @property
    def mean_text(self) -> str:
        return format_number(self.value, self._spec)

    @property
    def interval_text(self) -> str:
        return format_interval(self.low, self.high, self._spec)

    @property
    def _spec(self) -> str:
        if self.key in SURFACE_DISTANCES:
            return ".1f"
        return ".2f" if self.key.removesuffix("_percent") in SURFACE_DISTANCES else ".4f"


def metric_scores(
    test: Mapping[str, float], ci95: Mapping[str, Sequence[float]]
) -> list[MetricScore]:
    """Return the scores of a test evaluation. test, ci95: keys of metrics.json."""
    scores = []
    for key, value in test.items():
        if key not in {"n", "groups"}:
            low, high = ci95.get(key, (None, None))
            scores.append(MetricScore(key, *DEFINITIONS.get(key, (key, "")), value, low, high))
    return scores


def format_inference(inference: Mapping[str, Any]) -> str:
    """Return the steps between network and mask as text: ``mean over flips, largest``."""
    views = {"none": [], "flips": ["mean over flips"], "d4": ["mean over flips and rotations"]}
    steps = views.get(inference["tta"], [inference["tta"]])
    return ", ".join([*steps, *map(format_step, inference["chain"])]) or "threshold at 0.5 only"


def format_number(value: float | None, spec: str = ".4f") -> str:
    """Format a number; a dash if it is missing. A spec with ``+`` has a typographic minus sign."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:{spec}}".replace("-", "\N{MINUS SIGN}" if "+" in spec else "-")


def format_interval(low: float | None, high: float | None, spec: str = ".4f") -> str:
    """Format an interval: ``0.8123 to 0.8456``; see ``format_number``."""
    if low is None or high is None:
        return MISSING
    return f"{format_number(low, spec)} to {format_number(high, spec)}"


def format_p_value(p: float | None) -> str:
    """Format a p-value: ``0.0123`` or ``< 0.0001``."""
    return "< 0.0001" if p is not None and p < 0.0001 else format_number(p)


def format_duration(seconds: float) -> str:
    """Format a duration: ``2.5 hours``, ``34 minutes`` or ``12 seconds``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def format_count(n: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun, whose plural ends in "s" by default: ``1,234 trials``."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"
