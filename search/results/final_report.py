"""FinalReport: the content of ``final/metrics.json`` (docs/report.md)."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.inference.selection import DEFAULT_INFERENCE, InferenceChoice
from lesionseg.runtime.device import describe_device
from search.results.evaluation import summarize_evaluation
from search.results.retraining import RetrainedModel
from search.storage import trial_records
from search.study.opening import OpenStudy
from search.trial_process.protocol import Evaluated
from search.trial_process.slot import Slot

#: The largest gap in validation Dice at which the retraining counts as a reproduction.
REPRODUCTION_TOLERANCE = 0.02
#: Packages whose versions are recorded.
PACKAGES = (
    "lesionsearch", "torch", "optuna", "albumentations", "segmentation-models-pytorch", "timm",
    "monai",
)  # fmt: skip


@dataclass(frozen=True)
class ValidationDice:
    """Validation Dice of the search and of the retraining.

    ``retrained``, ``gap``, ``reproduced`` and ``seeds`` are None if the validation images were
    trained on. ``gap`` compares the retraining that has the trial's own seed with the trial; in a
    cross-validation with its first fold. ``folds``: the results of the folds, if there are any.
    """

    search: float | None
    retrained: float | None = None
    gap: float | None = None
    reproduced: bool | None = None
    seeds: Mapping[str, float] | None = None
    folds: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FinalReport:
    """Result of a final test. The fields are the keys of metrics.json (docs/report.md)."""

    study: str
    trial: int
    baseline: str | None
    final: Mapping[str, Any]
    test: Mapping[str, float]
    ci95: Mapping[str, Sequence[float]]
    confusion: Mapping[str, float]
    curves: Mapping[str, Sequence[float | None]]
    val: ValidationDice
    inference: Mapping[str, Any]
    inference_choice: Mapping[str, Any] | None
    test_evaluations: int
    overlays: Sequence[Sequence[str]]
    seconds: float
    images_per_second: float
    images_per_second_single: float
    peak_memory: int
    params: int
    macs: int
    seed: int
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    device: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FinalReport:
        """Build a report from the content of metrics.json."""
        return cls(**{**stored, "val": ValidationDice(**stored["val"])})


def build_report(
    opened: OpenStudy,
    trial: FrozenTrial,
    models: Sequence[RetrainedModel],
    selected: RetrainedModel,
    choice: InferenceChoice | None,
    tested: Evaluated,
    *,
    test_evaluations: int,
    slot: Slot,
) -> FinalReport:
    """Combine the results of retraining, selection and test evaluation."""
    config = TrialConfig.from_dict(trial_records.config_of(trial))
    return FinalReport(
        study=opened.name,
        trial=trial.number,
        baseline=trial.user_attrs.get(trial_records.TrialAttr.BASELINE),
        final=opened.spec.final.model_dump(),
        **summarize_evaluation(tested.evaluation),
        val=_validation_dice(trial, models, held_out=opened.spec.final.fit_on == "train"),
        inference=(choice.inference if choice else DEFAULT_INFERENCE).to_dict(),
        inference_choice=_choice_to_dict(choice) if choice else None,
        test_evaluations=test_evaluations,
        overlays=[list(pair) for pair in tested.overlays],
        seconds=sum(model.result.seconds for model in models),
        images_per_second=tested.speed["batch"],
        images_per_second_single=tested.speed["single"],
        peak_memory=max(model.result.peak_memory for model in models),
        params=selected.params,
        macs=selected.macs,
        seed=selected.seed,
        config=replace(config, seed=selected.seed).to_dict(),
        versions={"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        device=describe_device(slot.device),
        threads=slot.threads,
    )


def _choice_to_dict(choice: InferenceChoice) -> dict[str, Any]:
    return {
        "dice": choice.dice,
        "default_dice": choice.default_dice,
        "candidates": list(map(asdict, choice.candidates)),
    }


def _validation_dice(
    trial: FrozenTrial, models: Sequence[RetrainedModel], *, held_out: bool
) -> ValidationDice:
    folds = trial_records.folds_of(trial)
    if not held_out:
        return ValidationDice(trial.value, folds=folds)
    # The first model repeats the trial with its seed; in a cross-validation, its first fold.
    gap = models[0].val_dice - (folds["dice"][0] if folds else float(trial.value or 0.0))
    return ValidationDice(
        search=trial.value,
        retrained=models[0].val_dice,
        gap=gap,
        reproduced=abs(gap) <= REPRODUCTION_TOLERANCE,
        seeds={str(model.seed): model.val_dice for model in models},
        folds=folds,
    )
