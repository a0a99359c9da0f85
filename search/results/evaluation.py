"""Evaluation of a checkpoint on the test images, and its summary."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lesionseg.data.pairs import Record
from lesionseg.inference.evaluate import Evaluation
from lesionseg.metrics import compare, curves
from search.errors import JobFailed
from search.results.slot_threads import TaskStopped
from search.storage.final_report import Disagreement, EvaluationSummary
from search.study.opening import OpenStudy
from search.trial_process.process import TrialProcess
from search.trial_process.protocol import ErrorReason, Evaluated, EvaluateJob, Job, JobError
from search.trial_process.supervisor import POLL_S

Outcome = TypeVar("Outcome")

#: Points of the precision-recall curve that are stored.
CURVE_POINTS = 101


def run_job(
    job: Job,
    outcome_type: type[Outcome],
    description: str,
    must_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run a job in a process of its own and return its outcome.

    Args:
        job: what to run.
        outcome_type: type of the last message.
        description: of the job, for the error.
        must_stop: whether to end the process.

    Raises:
        JobFailed: the job failed; the message contains the reason.
        TaskStopped: ``must_stop`` returned True.
    """
    with TrialProcess(job) as process:
        while not must_stop():
            message = process.receive(POLL_S)
            if isinstance(message, outcome_type):
                return message
            if isinstance(message, JobError):
                raise JobFailed(f"{description} failed: {describe_job_error(message)}")
    raise TaskStopped


def describe_job_error(error: JobError) -> str:
    """Return reason and message; only the message if the reason is bad input."""
    is_complete = error.reason in {ErrorReason.CONFIG, ErrorReason.DEVICE}
    return error.message if is_complete else f"{error.reason}: {error.message}"


def evaluate_checkpoint(job: EvaluateJob) -> Evaluated:
    """Evaluate a checkpoint in a process of its own; see ``run_job``."""
    return run_job(job, Evaluated, "the test evaluation")


def read_test_records(opened: OpenStudy) -> tuple[Record, ...]:
    """Return the records of a study's test split."""
    names = set(opened.split.test)
    return tuple(r for r in opened.index.records if r.name in names)


def summarize_evaluation(evaluation: Evaluation) -> EvaluationSummary:
    """Return the keys ``test``, ``ci95``, ``confusion`` and ``curves`` of metrics.json.

    Scores are means over images, with 95% intervals from a bootstrap over groups. Surface
    distances are in pixels at the masks' own sizes and in percent of their diagonals. The curves
    use the probabilities that are thresholded, after the selected augmentation and CRF.
    """
    groups = [record.group for record in evaluation.records]
    scores = evaluation.scores | evaluation.distances
    pooled = curves.mean_histogram(evaluation.histograms)
    curve = curves.precision_recall(pooled)
    calibration = curves.calibration(pooled)
    indices = np.linspace(0, len(curve.recall) - 1, CURVE_POINTS).round().astype(int)
    return {
        "test": {name: float(values.mean()) for name, values in scores.items()}
        | {
            "average_precision": curves.average_precision(pooled),
            "calibration_error": curves.calibration_error(pooled),
            "n": len(groups),
            "groups": len(set(groups)),
        },
        "ci95": {k: list(v) for k, v in compare.bootstrap_intervals(scores, groups).items()},
        "confusion": curves.mean_confusion(evaluation.counts),
        "curves": {
            "thresholds": curve.thresholds[indices].tolist(),
            "precision": curve.precision[indices].tolist(),
            "recall": curve.recall[indices].tolist(),
            "confidence": _bins_to_json(calibration.confidence),
            "frequency": _bins_to_json(calibration.frequency),
            "share": _bins_to_json(calibration.share),
        },
    }


def _bins_to_json(values: NDArray[np.floating]) -> list[float | None]:
    """Replace NaN, the value of an empty bin, by None: JSON has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def per_image_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one row per image: name, group, size, pixel counts, scores and distances.

    Of an ensemble the disagreement of its members too.
    """
    columns = evaluation.scores | evaluation.distances
    if evaluation.disagreement is not None:
        columns |= {"disagreement": evaluation.disagreement}
    return [
        {"name": record.name, "group": record.group, "height": shape[0], "width": shape[1]}
        | dict(zip(("tp", "fp", "fn", "tn"), counts.tolist(), strict=True))
        | {name: float(values[i]) for name, values in columns.items()}
        for i, (record, shape, counts) in enumerate(
            zip(evaluation.records, evaluation.shapes, evaluation.counts, strict=True)
        )
    ]


def describe_disagreement(evaluation: Evaluation) -> Disagreement | None:
    """Return the rank correlation of Dice and disagreement over images; None of a single network.

    The correlation is None where one of them is the same for all images.
    """
    if evaluation.disagreement is None:
        return None
    dice = evaluation.scores["dice"]
    if min(np.ptp(dice), np.ptp(evaluation.disagreement)) == 0:
        return {"spearman": None}
    return {"spearman": float(spearmanr(dice, evaluation.disagreement).statistic)}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write at least one row to a CSV file; the first one has all columns."""
    # Paths may contain bytes that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
