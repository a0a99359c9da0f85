"""The content of ``final/metrics.json``; docs/report.md describes the keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, FiniteFloat
from typing_extensions import TypedDict

from lesionseg.config import DEFAULT_COMPONENTS
from lesionseg.runtime.files import find_name_problem
from search.storage.stored_files import Count, Name, require_keys

Scalar = None | bool | int | float | str
#: ``{option: parameters}``.
Component = Annotated[dict[str, dict[str, Scalar]], Field(min_length=1, max_length=1)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


def _check_components(config: dict[str, Any]) -> dict[str, Any]:
    for family in DEFAULT_COMPONENTS:
        if not isinstance(config.get(family), dict):
            raise ValueError(f"{family} must be {{option: parameters}}")
    return config


def _check_overlay(overlay: list[str]) -> list[str]:
    if problem := find_name_problem(overlay[1]):
        raise ValueError(f"{overlay[1]!r:.80} cannot be a file's name: {problem}")
    return overlay


Config = Annotated[dict[str, Component | Scalar], AfterValidator(_check_components)]
Overlay = Annotated[list[Name], Field(min_length=2, max_length=2), AfterValidator(_check_overlay)]


class ValidationDice(TypedDict):
    """Validation Dice of search and retraining; the values after ``search`` may be None."""

    search: FiniteFloat | None
    retrained: FiniteFloat | None
    gap: FiniteFloat | None
    reproduced: bool | None
    seeds: dict[str, FiniteFloat] | None
    folds: dict[str, Any] | None


def _check_gap(val: ValidationDice) -> ValidationDice:
    if val["gap"] is not None and None in (val["search"], val["retrained"]):
        raise ValueError("a gap needs the Dice of search and retraining")
    return val


class Curves(TypedDict):
    """Precision and recall by threshold; confidence, frequency and share by bin."""

    thresholds: list[FiniteFloat]
    precision: list[FiniteFloat]
    recall: list[FiniteFloat]
    confidence: list[FiniteFloat | None]
    frequency: list[FiniteFloat | None]
    share: list[FiniteFloat | None]


def _check_lengths(curves: Curves) -> Curves:
    points = {len(curves[key]) for key in ("thresholds", "precision", "recall")}
    bins = {len(curves[key]) for key in ("confidence", "frequency", "share")}
    if points == {0} or len(points) > 1 or len(bins) > 1:
        raise ValueError("the lists must be of one length")
    return curves


class Inference(TypedDict):
    """As ``lesionseg.inference.selection.Inference``."""

    tta: str
    chain: list[Component]


class EvaluationSummary(TypedDict):
    """The result of one test evaluation."""

    test: Annotated[
        dict[str, Count | float],
        require_keys("dice", "average_precision", "calibration_error", "n", "groups"),
    ]
    ci95: Annotated[dict[str, Interval], require_keys("dice")]
    confusion: Annotated[dict[str, FiniteFloat], require_keys("tp", "fp", "fn", "tn")]
    curves: Annotated[Curves, AfterValidator(_check_lengths)]


class FinalReport(EvaluationSummary):
    """The result of the final test."""

    study: str
    trial: Count
    baseline: str | None
    final: dict[str, Any]
    val: Annotated[ValidationDice, AfterValidator(_check_gap)]
    inference: Inference
    inference_choice: dict[str, Any] | None
    test_evaluations: Count
    overlays: list[Overlay]
    seconds: FiniteFloat
    images_per_second: FiniteFloat
    images_per_second_single: FiniteFloat
    peak_memory: Count
    params: Count
    macs: Count
    seed: Count
    config: Config
    versions: dict[str, str]
    device: str
    threads: Count
