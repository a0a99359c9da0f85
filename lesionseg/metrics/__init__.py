"""Metrics of predicted masks: overlap, surface distances, curves, intervals and tests."""

from __future__ import annotations

from lesionseg.metrics.compare import (
    PairedDifference,
    adjust_p_values,
    bootstrap_intervals,
    paired_difference,
    wilcoxon_p_value,
)
from lesionseg.metrics.curves import (
    average_precision,
    calibration,
    calibration_error,
    mean_confusion,
    mean_histogram,
    precision_recall,
    probability_histogram,
)
from lesionseg.metrics.overlap import (
    JACCARD_THRESHOLD,
    METRICS,
    Floats,
    Metrics,
    count_pixels,
    mean_scores,
    score_images,
)
from lesionseg.metrics.surface import SURFACE_DISTANCES, percent_of_diagonal, surface_distances

__all__ = [
    "JACCARD_THRESHOLD",
    "METRICS",
    "SURFACE_DISTANCES",
    "Floats",
    "Metrics",
    "PairedDifference",
    "adjust_p_values",
    "average_precision",
    "bootstrap_intervals",
    "calibration",
    "calibration_error",
    "count_pixels",
    "mean_confusion",
    "mean_histogram",
    "mean_scores",
    "paired_difference",
    "percent_of_diagonal",
    "precision_recall",
    "probability_histogram",
    "score_images",
    "surface_distances",
    "wilcoxon_p_value",
]
