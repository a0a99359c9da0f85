"""The content of ``final/metrics.json``; docs/report.md describes the keys."""

from __future__ import annotations

from typing import Any, TypedDict


class ValidationDice(TypedDict):
    """Validation Dice of search and retraining; the values after ``search`` may be None."""

    search: float | None
    retrained: float | None
    gap: float | None
    reproduced: bool | None
    seeds: dict[str, float] | None
    folds: dict[str, Any] | None


class EvaluationSummary(TypedDict):
    """What one test evaluation gave."""

    test: dict[str, float]
    ci95: dict[str, list[float]]
    confusion: dict[str, float]
    curves: dict[str, list[float | None]]


class FinalReport(EvaluationSummary):
    """The result of the final test."""

    study: str
    trial: int
    baseline: str | None
    final: dict[str, Any]
    val: ValidationDice
    inference: dict[str, Any]
    inference_choice: dict[str, Any] | None
    test_evaluations: int
    overlays: list[list[str]]
    seconds: float
    images_per_second: float
    images_per_second_single: float
    peak_memory: int
    params: int
    macs: int
    seed: int
    config: dict[str, Any]
    versions: dict[str, str]
    device: str
    threads: int
