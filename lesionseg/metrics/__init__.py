"""What is measured of predictions: overlap, surface distances, curves, and how sure all are."""

from __future__ import annotations

from lesionseg.metrics.compare import Paired, bootstrap, holm, paired, wilcoxon
from lesionseg.metrics.curves import (
    Calibration,
    Curve,
    average_precision,
    calibration,
    calibration_error,
    confusion,
    pooled,
    precision_recall,
    tally,
)
from lesionseg.metrics.overlap import (
    JACCARD_THRESHOLD,
    METRICS,
    Floats,
    Metrics,
    count,
    mean,
    score,
)
from lesionseg.metrics.surface import SURFACE, diagonal, percent, surface

__all__ = [
    "JACCARD_THRESHOLD",
    "METRICS",
    "SURFACE",
    "Calibration",
    "Curve",
    "Floats",
    "Metrics",
    "Paired",
    "average_precision",
    "bootstrap",
    "calibration",
    "calibration_error",
    "confusion",
    "count",
    "diagonal",
    "holm",
    "mean",
    "paired",
    "percent",
    "pooled",
    "precision_recall",
    "score",
    "surface",
    "tally",
    "wilcoxon",
]
