"""The report's charts as inline SVG."""

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
    retraining_chart,
)

__all__ = [
    "calibration_chart",
    "confusion_chart",
    "curves_chart",
    "dice_chart",
    "history_chart",
    "importance_chart",
    "parallel_chart",
    "recall_chart",
    "retraining_chart",
    "size_chart",
    "slices_chart",
]
