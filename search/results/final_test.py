"""The final test: retrain the best configuration and evaluate it once on the test images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import yaml
from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.data.pairs import SPLITS
from search.errors import JobFailed
from search.results import model_card
from search.results.evaluation import (
    evaluate_checkpoint,
    per_image_rows,
    read_test_records,
    write_csv,
)
from search.results.final_report import FinalReport, build_report
from search.results.retraining import OnEpoch, RetrainedModel, retrain, select_inference
from search.storage import trial_records
from search.storage.study_dir import read_metrics
from search.study.evaluations import record_test_evaluation
from search.study.opening import OpenStudy
from search.trial_process.protocol import EvaluateJob, flatten_record
from search.trial_process.slot import Slot


def run_final_test(
    opened: OpenStudy,
    slot: Slot,
    *,
    again: bool = False,
    on_epoch: OnEpoch = lambda seed, record: None,
) -> FinalReport:
    """Retrain the best configuration, evaluate it on the test images and write ``final/``.

    If the best trial was tested before with the same settings, the stored report is returned. Every
    test evaluation is counted, because more than one makes the result optimistic. The folder
    ``final/`` is replaced as a whole; after an error it is unchanged.

    Args:
        opened: the study.
        slot: device and number of threads.
        again: test again even if there is a stored report.
        on_epoch: called with the seed and the record of each epoch of the retraining.

    Raises:
        JobFailed: there is no complete trial, or the retraining or the evaluation failed.
    """
    trial = best_trial(opened.study)
    stored = read_metrics(opened.folder)
    settings = opened.spec.final.model_dump()
    if stored and (stored["trial"], stored["final"]) == (trial.number, settings) and not again:
        return FinalReport.from_dict(stored)
    partial = opened.folder / "final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        report = _retrain_and_test(opened, slot, trial, partial, on_epoch)
        _replace_folder(opened.folder / "final", partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Return the complete trial with the best validation Dice.

    Raises:
        JobFailed: there is none; the message contains the reasons.
    """
    trials = trial_records.all_trials(study)
    ranking = trial_records.rank_trials(trials)
    if not ranking:
        counts = trial_records.count_reasons(trials)
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.items())
        raise JobFailed(f"{study.study_name}: no complete trial ({reasons or 'no trial was run'})")
    return ranking[0]


def _retrain_and_test(
    opened: OpenStudy, slot: Slot, trial: FrozenTrial, folder: Path, on_epoch: OnEpoch
) -> FinalReport:
    config = TrialConfig.from_dict(trial_records.config_of(trial))
    configs = [replace(config, seed=config.seed + i) for i in range(opened.spec.final.seeds)]
    models = [retrain(opened, slot, trial, each, folder, on_epoch) for each in configs]
    # By validation Dice, never by test Dice; of equals the first.
    selected = max(models, key=lambda model: model.val_dice)
    weights = folder / "model.safetensors"
    selected.weights.rename(weights)
    for model in models:
        model.weights.unlink(missing_ok=True)
    choice = select_inference(opened, slot, trial, weights)
    test_evaluations = record_test_evaluation(opened.study)
    job = EvaluateJob(
        weights,
        opened.cache.path,
        read_test_records(opened),
        slot.device,
        slot.threads,
        folder / "overlays",
    )
    tested = evaluate_checkpoint(job)
    report = build_report(
        opened, trial, models, selected, choice, tested,
        test_evaluations=test_evaluations, slot=slot,
    )  # fmt: skip
    write_csv(folder / "per_image.csv", per_image_rows(tested.evaluation))
    _write_report(opened, report, selected, folder)
    return report


def _write_report(
    opened: OpenStudy, report: FinalReport, model: RetrainedModel, folder: Path
) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(report.config), sort_keys=False))
    write_csv(folder / "history.csv", [flatten_record(record) for record in model.result.history])
    (folder / "metrics.json").write_text(json.dumps(report.to_dict(), indent=2))
    card = model_card.render_model_card(
        report,
        layout=opened.index.layout,
        split_sizes={split: len(getattr(opened.split, split)) for split in SPLITS},
        fingerprint=str(opened.study.user_attrs["data"]),
    )
    (folder / model_card.FILE_NAME).write_text(card, encoding="utf-8")


def _replace_folder(folder: Path, new: Path) -> None:
    """Rename ``new`` to ``folder``, then delete the previous folder."""
    previous = folder.with_name("final.old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    new.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
