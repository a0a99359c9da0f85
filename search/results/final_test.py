"""The final test: retrain the best configurations and evaluate the result on the test images."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import cast

import yaml
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from lesionseg.data.cache import Progress
from lesionseg.data.pairs import SPLITS
from lesionseg.inference.selection import DEFAULT_INFERENCE, InferenceChoice
from lesionseg.runtime.device import describe_device
from lesionseg.runtime.files import atomic_folder
from search.errors import JobFailed
from search.results import final_metrics
from search.results.evaluation import (
    describe_disagreement,
    evaluate_checkpoint,
    per_image_rows,
    read_test_records,
    summarize_evaluation,
    write_csv,
)
from search.results.final_check import prepare_final
from search.results.final_network import FinalNetwork, build_network, select_inference
from search.results.final_time import make_schedule, trainable
from search.results.final_training import FinalSetup, Retrained, train_finalists
from search.results.finalists import best_trials
from search.results.model_card import render_model_card
from search.spec.study_spec import FinalSpec
from search.storage import trial_records
from search.storage.final_report import FinalReport, Inference
from search.storage.study_dir import read_metrics
from search.study.deadline import remaining_s
from search.study.opening import OpenStudy, record_test_evaluation
from search.trial_process.protocol import Evaluated, EvaluateJob, flatten_record
from search.trial_process.slot import Slot

#: Folder of retrainings until the test is done.
RETRAININGS = "retraining"
#: Packages whose versions are recorded.
PACKAGES = (
    "lesionsearch", "torch", "optuna", "albumentations", "segmentation-models-pytorch", "timm",
    "monai",
)  # fmt: skip


def run_final_test(
    opened: OpenStudy,
    *slots: Slot,
    again: bool = False,
    limit_time: bool = True,
    on_progress: Progress = lambda done, total: None,
    on_cache: Progress = lambda done, total: None,
    on_event: Callable[[str], None] = lambda message: None,
) -> FinalReport:
    """Retrain the best configurations, evaluate the result on the test images, write ``final/``.

    If the same trials were tested before with the same settings, the stored result is returned.
    Every test evaluation that gives scores is counted, because more than one makes the result
    optimistic. All inputs are checked before the retraining. The folder ``final/`` is replaced as a
    whole; after an error it is unchanged. States of interrupted retrainings and weights of finished
    ones are in ``retraining/`` until the test is done, and are used by the next call.

    Args:
        opened: the study.
        slots: device and number of threads, of each training that runs at the same time.
        again: test again even if there is a stored result.
        limit_time: whether to fit the trainings to what is left of ``budget.total_hours``.
        on_progress: called with the completed and the total epochs of the retrainings.
        on_cache: called with the number of images that were read at the final's image size, and of
            all images.
        on_event: called with a message for each retraining that is left out, and for each change of
            the plan.

    Returns:
        The content of ``final/metrics.json`` (docs/report.md).

    Raises:
        InputError: an input is missing or unusable; see ``prepare_final``.
        JobFailed: there is no complete trial, all retrainings failed, or the evaluation failed.
    """
    start = time.monotonic()
    best = best_trials(opened.study, opened.spec.final.finalists)
    trials = trainable(best, opened.spec, on_event)
    stored = None if again else read_metrics(opened.folder)
    if stored and _is_current(stored, opened.spec.final, trials):
        return stored
    prepared = prepare_final(opened, trials, on_cache)
    retrainings, final = opened.folder / RETRAININGS, opened.folder / "final"
    left_s = remaining_s(opened) if limit_time else None
    schedule = make_schedule(prepared, trials, slots, retrainings, left_s, on_event)
    setup = FinalSetup(opened, prepared, trials, slots, schedule, on_event)
    retrained = train_finalists(setup, retrainings, on_progress)
    with _weights_kept(opened.folder, again=again), atomic_folder(final, replace=True) as part:
        report = _test(setup, retrained, part, start)
    shutil.rmtree(retrainings, ignore_errors=True)
    return report


def _is_current(stored: FinalReport, final: FinalSpec, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether a result is of these trials and settings.

    Those of earlier versions lack newer settings. They are not repeated for the defaults of these.
    """
    try:
        settings = FinalSpec.model_validate(stored["final"])
    except ValidationError:  # of another version
        return False
    candidates = stored.get("candidates", [stored["trial"]])
    return settings == final and candidates == [trial.number for trial in trials]


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


def _test(setup: FinalSetup, retrained: Retrained, folder: Path, start: float) -> FinalReport:
    """Write the files of ``final/`` to a folder; return the content of metrics.json.

    start: of the final test, by the monotonic clock.
    """
    opened, weights = setup.search, folder / "model.safetensors"
    network = build_network(setup, retrained, weights)
    choice = select_inference(setup, retrained, weights)
    records, best = read_test_records(opened), network.best_member
    tested = evaluate_checkpoint(
        EvaluateJob(
            weights, setup.final.cache.path, records, setup.slot, folder / "overlays",
            best_member=best if len(network.members) > 1 else None,
        )
    )  # fmt: skip
    # Before any score is written or printed. An evaluation without scores does not count.
    evaluations = record_test_evaluation(opened.study)
    report = _report(setup, retrained, network, choice, tested, evaluations)
    report["time"] = final_metrics.time_report(setup, time.monotonic() - start)
    (folder / "metrics.json").write_text(json.dumps(report, indent=2))
    (folder / "config.yaml").write_text(yaml.safe_dump(report["config"], sort_keys=False))
    write_csv(folder / "per_image.csv", per_image_rows(tested.evaluation))
    history = retrained.tested.best_model.result.history
    write_csv(folder / "history.csv", [flatten_record(row) for row in history])
    card = render_model_card(
        report,
        layout=opened.index.layout,
        split_sizes={split: len(getattr(opened.split, split)) for split in SPLITS},
        fingerprint=str(opened.study.user_attrs["data"]),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    stored: FinalReport = json.loads((folder / "metrics.json").read_text())
    return stored


def _report(
    setup: FinalSetup,
    retrained: Retrained,
    network: FinalNetwork,
    choice: InferenceChoice | None,
    tested: Evaluated,
    test_evaluations: int,
) -> FinalReport:
    """Return the content of metrics.json, without its time."""
    opened, chosen, finalists = setup.search, retrained.chosen, retrained.finalists
    largest = network.members[0].candidate
    return {
        "study": opened.name,
        "trial": chosen.trial.number,
        "candidates": [trial.number for trial in setup.trials],
        "baseline": chosen.trial.user_attrs.get(trial_records.TrialAttr.BASELINE),
        "final": opened.spec.final.model_dump(),
        **summarize_evaluation(tested.evaluation),
        "val": final_metrics.validation_dice(
            chosen, held_out=bool(finalists), is_repetition=setup.is_repetition
        ),
        "fidelity": final_metrics.fidelities(setup),
        "finalists": final_metrics.finalist_reports(finalists, chosen) or None,
        "optimism": final_metrics.measure_optimism(
            finalists, setup.trials[0].number, is_repetition=setup.is_repetition
        ),
        "ensemble": final_metrics.ensemble_report(network, tested.speed),
        "disagreement": describe_disagreement(tested.evaluation),
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
        "seconds": sum(model.result.seconds for model in retrained.models),
        "images_per_second": tested.speed["batch"],
        "images_per_second_single": tested.speed["single"],
        "peak_memory": max(model.result.peak_memory for model in retrained.models),
        "params": sum(member.candidate.params for member in network.members),
        "macs": sum(member.candidate.macs for member in network.members),
        "seed": largest.config["seed"],
        "config": largest.config,
        "encoder_weights": final_metrics.encoder_weights(largest.config),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": describe_device(setup.slot.device),
        "threads": setup.slot.threads,
        "time": None,
    }  # fmt: skip
