"""The content of ``final/metrics.json``; docs/report.md describes the keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

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


class Fidelity(TypedDict):
    """Image size in pixels, and epochs, of a training."""

    image_size: Count
    epochs: Count


class Fidelities(TypedDict):
    """What the trials of the search were trained with, and what the networks of the final."""

    search: Fidelity
    final: Fidelity


class Finalist(TypedDict):
    """A configuration of the search that was trained again.

    search: the trial's value. dice: validation Dice of each seed; mean, deviation: over these, the
    deviation None for one. seconds: of all its trainings.
    """

    trial: Count
    search: FiniteFloat
    dice: Annotated[list[FiniteFloat], Field(min_length=1)]
    mean: FiniteFloat
    deviation: FiniteFloat | None
    seconds: FiniteFloat
    chosen: bool


class Member(TypedDict):
    """A member of the ensemble: weights of a trial of the search, or of a training of the final.

    dice: of the member alone on the validation images; None if it was trained on them.
    """

    kind: Literal["trial", "final"]
    trial: Count
    seed: Count
    weight: FiniteFloat
    dice: FiniteFloat | None
    config: Config


class EnsembleReport(TypedDict):
    """The ensemble beside its best member; the Dice values are None without held-out images."""

    members: Annotated[list[Member], Field(min_length=2)]
    dice: FiniteFloat | None
    best_dice: FiniteFloat | None
    gain: FiniteFloat | None
    standard_error: FiniteFloat | None
    images_per_second: FiniteFloat
    best_images_per_second: FiniteFloat
    mb: FiniteFloat
    best_mb: FiniteFloat


class Optimism(TypedDict):
    """The winner's curse: how much of the lead of the search's best trial its retraining keeps.

    search_lead, final_lead: its Dice minus the mean of the other finalists, in the search and after
    the retraining; None without others. gap: its Dice in the search minus the mean of its
    retrainings; None if these differ in image size or epochs.
    """

    search_lead: FiniteFloat | None
    final_lead: FiniteFloat | None
    gap: FiniteFloat | None


class Disagreement(TypedDict):
    """Over test images: rank correlation of the Dice and the disagreement of the members."""

    spearman: FiniteFloat | None


class FinalTime(TypedDict):
    """Seconds that were left for the final test, of its forecast, and that it took."""

    left_s: FiniteFloat
    forecast_s: FiniteFloat
    used_s: FiniteFloat


class FinalReport(EvaluationSummary):
    """The result of the final test. Files of earlier versions lack the optional keys."""

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
    candidates: NotRequired[list[Count]]
    encoder_weights: NotRequired[str | None]
    fidelity: NotRequired[Fidelities]
    finalists: NotRequired[list[Finalist] | None]
    ensemble: NotRequired[EnsembleReport | None]
    optimism: NotRequired[Optimism | None]
    disagreement: NotRequired[Disagreement | None]
    time: NotRequired[FinalTime | None]
