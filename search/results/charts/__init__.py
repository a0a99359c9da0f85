"""The report's charts, as SVG that lies within a page."""

from __future__ import annotations

from search.results.charts.evaluation import (
    calibration_chart,
    confusion_chart,
    dice_chart,
    recall_chart,
    size_chart,
)
from search.results.charts.parameters import parallel_chart, slices_chart
from search.results.charts.trials import (
    curves_chart,
    history_chart,
    importance_chart,
    last_value,
    retraining_chart,
)

__all__ = [
    "calibration_chart",
    "confusion_chart",
    "curves_chart",
    "dice_chart",
    "history_chart",
    "importance_chart",
    "last_value",
    "parallel_chart",
    "recall_chart",
    "retraining_chart",
    "size_chart",
    "slices_chart",
]
