"""The final test: retrain the best configuration and evaluate it once on the test images."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import optuna
import yaml
from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.data.pairs import SPLITS
from lesionseg.inference.selection import DEFAULT_INFERENCE
from lesionseg.runtime.device import describe_device
from lesionseg.runtime.files import atomic_folder
from search.errors import JobFailed
from search.results.evaluation import (
    evaluate_checkpoint,
    per_image_rows,
    read_test_records,
    summarize_evaluation,
    write_csv,
)
from search.results.final_check import check_final_inputs
from search.results.model_card import render_model_card
from search.results.retraining import RetrainedModel, retrain, select_inference
from search.storage import trial_records
from search.storage.final_report import FinalReport, Inference, ValidationDice
from search.storage.study_dir import read_metrics
from search.study.opening import OpenStudy, record_test_evaluation
from search.trial_process.protocol import EvaluateJob, flatten_record
from search.trial_process.slot import Slot

#: The largest gap in validation Dice at which the retraining counts as a reproduction.
REPRODUCTION_TOLERANCE = 0.02
#: Folder of retrainings until the test is done.
RETRAININGS = "retraining"
#: Packages whose versions are recorded.
PACKAGES = (
    "lesionsearch", "torch", "optuna", "albumentations", "segmentation-models-pytorch", "timm",
    "monai",
)  # fmt: skip


def run_final_test(
    opened: OpenStudy,
    slot: Slot,
    *,
    again: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FinalReport:
    """Retrain the best configuration, evaluate it on the test images and write ``final/``.

    If the best trial was tested before with the same settings, the stored result is returned. Every
    test evaluation that gives scores is counted, because more than one makes the result optimistic.
    All inputs are checked before the retraining. The folder ``final/`` is replaced as a whole;
    after an error it is unchanged. States of interrupted retrainings and weights of finished ones
    are in ``retraining/`` until the test is done, and are used by the next call.

    Args:
        opened: the study.
        slot: device and number of threads.
        again: test again even if there is a stored result.
        on_progress: called with the completed and the total epochs of the retraining.

    Returns:
        The content of ``final/metrics.json`` (docs/report.md).

    Raises:
        InputError: an input is missing or unusable; see ``check_final_inputs``.
        JobFailed: there is no complete trial, or the retraining or the evaluation failed.
    """
    trial = best_trial(opened.study)
    stored = None if again else read_metrics(opened.folder)
    settings = opened.spec.final.model_dump()
    if stored and (stored["trial"], stored["final"]) == (trial.number, settings):
        return stored
    config = TrialConfig.from_dict(trial_records.config_of(trial))
    configs = [replace(config, seed=config.seed + i) for i in range(opened.spec.final.seeds)]
    check_final_inputs(opened, trial, configs)
    retrainings, total = opened.folder / RETRAININGS, config.epochs * len(configs)
    models = [
        retrain(
            opened, slot, trial, each, retrainings,
            on_epoch=lambda epoch, i=i: on_progress(i * config.epochs + epoch, total),  # type: ignore[misc]
        )
        for i, each in enumerate(configs)
    ]  # fmt: skip
    final = opened.folder / "final"
    with _weights_kept(opened.folder, again=again), atomic_folder(final, replace=True) as part:
        report = _test(opened, slot, trial, models, part)
    shutil.rmtree(retrainings, ignore_errors=True)
    return report


@contextmanager
def _weights_kept(folder: Path, *, again: bool) -> Iterator[None]:
    """Raise JobFailed, with the command that continues, for an error after the retraining."""
    try:
        yield
    except (JobFailed, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{folder / 'final'}: cannot be written: {error.strerror or error}"
        raise JobFailed(
            f"final: {reason}; the retrained weights are kept, `lesionsearch final "
            f"{shlex.quote(str(folder))}{' --again' * again}` continues with them"
        ) from error


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


def _test(
    opened: OpenStudy,
    slot: Slot,
    trial: FrozenTrial,
    models: Sequence[RetrainedModel],
    folder: Path,
) -> FinalReport:
    """Write the files of ``final/`` to a folder; return the content of metrics.json."""
    # By validation Dice, never by test Dice; of equals the first.
    selected = max(models, key=lambda model: model.val_dice)
    weights = folder / "model.safetensors"
    shutil.copyfile(selected.weights, weights)
    choice = select_inference(opened, slot, trial, weights)
    records, overlays = read_test_records(opened), folder / "overlays"
    tested = evaluate_checkpoint(EvaluateJob(weights, opened.cache.path, records, slot, overlays))
    # Before any score is written or printed. An evaluation without scores does not count.
    test_evaluations = record_test_evaluation(opened.study)
    config = TrialConfig.from_dict(trial_records.config_of(trial))
    report: FinalReport = {
        "study": opened.name,
        "trial": trial.number,
        "baseline": trial.user_attrs.get(trial_records.TrialAttr.BASELINE),
        "final": opened.spec.final.model_dump(),
        **summarize_evaluation(tested.evaluation),
        "val": _validation_dice(trial, models, held_out=opened.spec.final.fit_on == "train"),
        "inference": cast(
            Inference, (choice.inference if choice else DEFAULT_INFERENCE).to_dict()
        ),
        "inference_choice": None if choice is None else {
            "dice": choice.dice,
            "default_dice": choice.default_dice,
            "candidates": list(map(asdict, choice.candidates)),
        },
        "test_evaluations": test_evaluations,
        "overlays": list(map(list, tested.overlays)),
        "seconds": sum(model.result.seconds for model in models),
        "images_per_second": tested.speed["batch"],
        "images_per_second_single": tested.speed["single"],
        "peak_memory": max(model.result.peak_memory for model in models),
        "params": selected.params,
        "macs": selected.macs,
        "seed": selected.seed,
        "config": replace(config, seed=selected.seed).to_dict(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": describe_device(slot.device),
        "threads": slot.threads,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(report, indent=2))
    (folder / "config.yaml").write_text(yaml.safe_dump(report["config"], sort_keys=False))
    write_csv(folder / "per_image.csv", per_image_rows(tested.evaluation))
    write_csv(folder / "history.csv", [flatten_record(row) for row in selected.result.history])
    card = render_model_card(
        report,
        layout=opened.index.layout,
        split_sizes={split: len(getattr(opened.split, split)) for split in SPLITS},
        fingerprint=str(opened.study.user_attrs["data"]),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    stored: FinalReport = json.loads((folder / "metrics.json").read_text())
    return stored


def _validation_dice(
    trial: FrozenTrial, models: Sequence[RetrainedModel], *, held_out: bool
) -> ValidationDice:
    """Return the validation Dice of the search and of the retraining.

    ``gap`` compares the first model, which repeats the trial with its seed, with the trial; in a
    cross-validation with its first fold. If the validation images were trained on, there is none.
    """
    folds = trial_records.folds_of(trial)
    gap = models[0].val_dice - (folds["dice"][0] if folds else float(trial.value or 0.0))
    return {
        "search": trial.value,
        "retrained": models[0].val_dice if held_out else None,
        "gap": gap if held_out else None,
        "reproduced": abs(gap) <= REPRODUCTION_TOLERANCE if held_out else None,
        "seeds": {str(model.seed): model.val_dice for model in models} if held_out else None,
        "folds": folds,
    }
