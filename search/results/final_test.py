"""The end of a study: retrain the best configuration, look at the test images once."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from lesionseg import metrics
from lesionseg.config import TrialConfig
from lesionseg.data.index import SPLITS, Record
from lesionseg.inference.evaluate import Evaluation
from lesionseg.inference.selection import PLAIN, InferenceChoice
from lesionseg.models import needs
from lesionseg.runtime.device import describe
from lesionseg.training.checkpoint import set_inference
from lesionseg.training.train import EpochRecord, TrainResult
from search.errors import JobFailed
from search.results import model_card
from search.storage import trial_records
from search.storage.retention import WEIGHTS
from search.storage.study_dir import read_metrics
from search.study.lifecycle import OpenStudy, count_test_evaluation
from search.trial_process.process import TrialProcess
from search.trial_process.protocol import (
    ChooseJob,
    Chosen,
    Job,
    JobError,
    ModelBuilt,
    Tested,
    TestJob,
    Trained,
    TrainJob,
    flat,
)
from search.trial_process.slot import Slot

#: The retrained validation Dice counts as reproduced within this of the search's.
REPRODUCED = 0.02

OnEpoch = Callable[[int, EpochRecord], None]


@dataclass(frozen=True)
class Retrained:
    """One retraining; ``weights`` lies beside the others until one is chosen."""

    seed: int
    result: TrainResult
    params: int
    macs: int
    weights: Path


def run_final_test(
    opened: OpenStudy,
    slot: Slot,
    *,
    again: bool = False,
    on_epoch: OnEpoch = lambda seed, record: None,
) -> dict[str, Any]:
    """Retrains the study's best configuration, tests it, writes ``final/``; its metrics.json.

    A study whose best was tested already, as the spec asks, is not tested again unless ``again``
    says so: each look at the test images is counted, and more than one makes the number a little
    less trustworthy. Files appear under ``final/`` all together or not at all.
    Raises Failed where there is no complete trial, or the retraining breaks.
    """
    best = best_of(opened.study)
    folder = opened.folder / "final"
    done = read_metrics(opened.folder)
    asked = opened.spec.final.model_dump()
    if done and (done["trial"], done["final"]) == (best.number, asked) and not again:
        return done
    partial = opened.folder / "final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        report = _finalize(opened, slot, best, partial, on_epoch)
        _replace(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _replace(folder: Path, new: Path) -> None:
    """Puts ``new`` in the place of ``folder``; the old one is deleted when that was done."""
    old = folder.with_name("final.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def best_of(study: optuna.Study) -> FrozenTrial:
    """The complete trial of the best validation Dice; Failed, with the reasons, without one."""
    known = trial_records.all_trials(study)
    ranking = trial_records.rank_trials(known)
    if not ranking:
        why = ", ".join(f"{reason} {n}" for reason, n in trial_records.count_reasons(known).items())
        raise JobFailed(f"{study.study_name}: no trial was completed ({why or 'none was run'})")
    return ranking[0]


def _finalize(
    opened: OpenStudy, slot: Slot, best: FrozenTrial, folder: Path, on_epoch: OnEpoch
) -> dict[str, Any]:
    config = TrialConfig.from_dict(trial_records.config_of(best))
    runs = [
        _retrain(opened, slot, best, replace(config, seed=config.seed + i), folder, on_epoch)
        for i in range(opened.spec.final.seeds)
    ]
    # By validation Dice, never by test Dice; the first of equals.
    chosen = max(runs, key=lambda run: run.result.best.metrics.dice)
    chosen.weights.rename(folder / "model.safetensors")
    for run in runs:
        run.weights.unlink(missing_ok=True)
    choice = _choose(opened, slot, best, folder)
    looks = count_test_evaluation(opened.study)
    records = test_records(opened)
    tested = test(
        TestJob(
            folder / "model.safetensors",
            opened.cache.path,
            records,
            slot.device,
            slot.threads,
            folder / "overlays",
        )
    )
    report = _report(opened, best, runs, chosen, choice, tested, looks)
    report |= {"device": describe(slot.device), "threads": slot.threads}
    final = replace(config, seed=chosen.seed)
    (folder / "config.yaml").write_text(yaml.safe_dump(final.to_dict(), sort_keys=False))
    write_rows(folder / "history.csv", [flat(r) for r in chosen.result.history])
    write_rows(folder / "per_image.csv", per_image(tested.evaluation))
    (folder / "metrics.json").write_text(json.dumps(report, indent=2))
    (folder / model_card.NAME).write_text(_card(opened, report), encoding="utf-8")
    return report


def _card(opened: OpenStudy, report: dict[str, Any]) -> str:
    parts = {part: len(getattr(opened.split, part)) for part in SPLITS}
    fingerprint = str(opened.study.user_attrs["data"])
    return model_card.model_card(
        report, layout=opened.index.layout, parts=parts, fingerprint=fingerprint
    )


def _retrain(
    opened: OpenStudy,
    slot: Slot,
    best: FrozenTrial,
    config: TrialConfig,
    folder: Path,
    on_epoch: OnEpoch,
) -> Retrained:
    material = opened.material
    both = opened.spec.final.fit_on == "train_val"
    weights = folder / f"seed_{config.seed}.safetensors"
    job = TrainJob(
        config.to_dict(),
        material.cache,
        material.train_val if both else material.train,
        material.val,
        slot.device,
        slot.threads,
        save_to=weights,
        # Without images to choose an epoch by, the search's choice of epoch is taken over.
        keep="last" if both else "best",
        imports=needs([config.model.name]),
    )
    last_epoch = int(best.user_attrs["best_epoch"]) if both else config.epochs
    built = ModelBuilt(0, 0)
    with TrialProcess(job) as child:
        for message in child.messages():
            match message:
                case ModelBuilt():
                    built = message
                    child.reply(stop=False)
                case EpochRecord():
                    on_epoch(config.seed, message)
                    child.reply(stop=both and message.epoch >= last_epoch)
                case Trained(result):
                    return Retrained(config.seed, result, built.params, built.macs, weights)
                case JobError(reason, text):
                    raise JobFailed(
                        f"final: the retraining of trial {best.number} broke: {reason}: {text}"
                    )
    raise AssertionError("a child ends with Trained or Broke")


def _choose(
    opened: OpenStudy, slot: Slot, best: FrozenTrial, folder: Path
) -> InferenceChoice | None:
    """Settles on validation images what is done to the output; None where nothing may be.

    A network that was fitted to the validation images too knows them, and would teach nothing of
    how it errs. There the choice is made with the search's own weights of the same configuration,
    which are kept of its best trials, and handed on.
    """
    asked, weights = opened.spec.final, folder / "model.safetensors"
    if not (asked.tta or asked.postprocess):
        return None
    judge = weights
    if asked.fit_on == "train_val":
        judge = folder / "of_the_search.safetensors"
        kept = opened.store.fetch(best.number, WEIGHTS)
        if kept is None:
            return None
        shutil.copy(kept, judge)
    job = ChooseJob(
        judge,
        opened.cache.path,
        opened.material.val,
        slot.device,
        slot.threads,
        tta=asked.tta,
        postprocess=asked.postprocess,
    )
    choice: InferenceChoice = _ended(job, Chosen, "the choice of inference").choice
    if judge != weights:
        set_inference(weights, choice.inference)
        judge.unlink()
    return choice


def test(job: TestJob) -> Tested:
    """A checkpoint judged on images in a process of its own; Failed, with the reason, if not."""
    tested: Tested = _ended(job, Tested, "the test")
    return tested


def _ended(job: Job, wanted: type, what: str) -> Any:
    with TrialProcess(job) as child:
        for message in child.messages():
            if isinstance(message, wanted):
                return message
            if isinstance(message, JobError):
                raise JobFailed(f"{what} broke: {message.reason}: {message.message}")
    raise AssertionError("a child ends with its job's answer or Broke")


def test_records(opened: OpenStudy) -> tuple[Record, ...]:
    """The records of a study's test part."""
    wanted = set(opened.split.test)
    return tuple(r for r in opened.index.records if r.name in wanted)


def judged(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says of a set of images: ``test``, ``ci95``, ``confusion``, ``curves``.

    Means over images with 95% intervals over groups. Surface distances in pixels at the masks' own
    sizes, and in percent of their diagonals. Curves are of the probabilities that are thresholded,
    after test-time augmentation and a random field where these were chosen.
    """
    groups = [r.group for r in evaluation.records]
    scores = evaluation.scores | evaluation.distances
    pooled = metrics.pooled(evaluation.tallies)
    curve = metrics.precision_recall(pooled)
    calibration = metrics.calibration(pooled)
    # A hundred points draw the curve; the whole of it would be most of the file.
    shown = np.linspace(0, len(curve.recall) - 1, 101).round().astype(int)
    return {
        "test": {name: float(values.mean()) for name, values in scores.items()}
        | {
            "average_precision": metrics.average_precision(pooled),
            "calibration_error": metrics.calibration_error(pooled),
            "n": len(groups),
            "groups": len(set(groups)),
        },
        "ci95": {k: list(v) for k, v in metrics.bootstrap(scores, groups).items()},
        "confusion": metrics.confusion(evaluation.counts),
        "curves": {
            "thresholds": curve.thresholds[shown].tolist(),
            "precision": curve.precision[shown].tolist(),
            "recall": curve.recall[shown].tolist(),
            "confidence": _plain(calibration.confidence),
            "frequency": _plain(calibration.frequency),
            "share": _plain(calibration.share),
        },
    }


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """JSON knows no NaN: an empty bin is null."""
    return [None if np.isnan(v) else float(v) for v in values]


def _report(
    opened: OpenStudy,
    best: FrozenTrial,
    runs: list[Retrained],
    chosen: Retrained,
    choice: InferenceChoice | None,
    tested: Tested,
    looks: int,
) -> dict[str, Any]:
    held_out = opened.spec.final.fit_on == "train"
    retrained = [r.result.best.metrics.dice for r in runs]
    # The first run repeats the trial, seed and all; the gap is between these two.
    folds = trial_records.folds_of(best)
    # Of a cross-validation, its first fold.
    repeated = folds["dice"][0] if folds else float(best.value or 0.0)
    gap = retrained[0] - repeated if held_out else None
    return {
        "study": opened.name,
        "trial": best.number,
        "baseline": best.user_attrs.get(trial_records.TrialAttr.BASELINE),
        "final": opened.spec.final.model_dump(),
        **judged(tested.evaluation),
        "val": {
            "search": best.value,
            "retrained": retrained[0] if held_out else None,
            "gap": gap,
            "reproduced": None if gap is None else abs(gap) <= REPRODUCED,
            "seeds": {str(r.seed): d for r, d in zip(runs, retrained, strict=True)}
            if held_out
            else None,
            **({"folds": folds} if folds else {}),
        },
        "inference": (choice.inference if choice else PLAIN).to_dict(),
        "inference_choice": choice
        and {"dice": choice.dice, "plain_dice": choice.plain_dice, "rows": choice.rows},
        "test_evaluations": looks,
        "overlays": [list(pair) for pair in tested.overlays],
        "seconds": sum(r.result.seconds for r in runs),
        "images_per_second": tested.speed["batch"],
        "images_per_second_single": tested.speed["single"],
        "peak_memory": max(r.result.peak_memory for r in runs),
        "params": chosen.params,
        "macs": chosen.macs,
        "seed": chosen.seed,
        "config": replace(
            TrialConfig.from_dict(trial_records.config_of(best)), seed=chosen.seed
        ).to_dict(),
        "versions": _versions(),
    }


def per_image(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each image: its size, its counts, its scores and its distances."""
    columns = evaluation.scores | evaluation.distances
    rows = []
    for i, record in enumerate(evaluation.records):
        height, width = evaluation.shapes[i]
        row: dict[str, Any] = {"name": record.name, "group": record.group}
        row |= {"height": height, "width": width}
        row |= dict(zip(("tp", "fp", "fn", "tn"), evaluation.counts[i].tolist(), strict=True))
        rows.append(row | {name: float(values[i]) for name, values in columns.items()})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV with a header; at least one row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _versions() -> dict[str, str]:
    packages = (
        "lesionsearch",
        "torch",
        "optuna",
        "albumentations",
        "segmentation-models-pytorch",
        "timm",
        "monai",
    )
    return {"python": platform.python_version()} | {p: version(p) for p in packages}
