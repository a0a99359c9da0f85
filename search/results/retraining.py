"""Retraining of a study's best configuration, and the selection of its inference steps."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter, ValidationError

from lesionseg.config import TrialConfig
from lesionseg.inference.selection import InferenceChoice
from lesionseg.models import required_imports
from lesionseg.runtime.files import atomic_write
from lesionseg.training.checkpoint import set_inference
from lesionseg.training.types import EpochRecord, TrainResult
from search.errors import JobFailed
from search.results.evaluation import describe_job_error, run_job
from search.storage.retention import WEIGHTS
from search.study.opening import OpenStudy
from search.trial_process.protocol import (
    InferenceSelected,
    JobError,
    ModelBuilt,
    SelectInferenceJob,
    Trained,
    TrainJob,
)
from search.trial_process.slot import Slot
from search.trial_process.supervisor import StopConditions, supervise_in_parts


@dataclass(frozen=True)
class RetrainedModel:
    """One retraining. ``params``: trainable parameters; ``macs``: multiply-adds per image."""

    seed: int
    result: TrainResult
    params: int
    macs: int
    weights: Path

    @property
    def val_dice(self) -> float:
        """Validation Dice of the epoch whose weights were kept."""
        return self.result.best.metrics.dice


@dataclass(frozen=True)
class _KeptModel:
    """A retrained model on disk. origin: its settings; sha256: checksum of the weights file."""

    origin: dict[str, Any]
    sha256: str
    model: RetrainedModel


def retrain(
    opened: OpenStudy,
    slot: Slot,
    trial: FrozenTrial,
    config: TrialConfig,
    folder: Path,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> RetrainedModel:
    """Train a trial's configuration again, unless the folder holds the complete result.

    With ``final.fit_on: train_val`` there are no images left to select an epoch on. The training
    then ends at the best epoch of the trial. Its state is saved in the folder, so that it resumes
    after an interruption. Batches are computed in as many parts as the trial needed.

    Args:
        opened: the study.
        slot: device and number of threads.
        trial: the trial.
        config: its configuration, possibly with another seed.
        folder: for the weights, their metadata, and the state of an unfinished training.
        on_epoch: called with the number of completed epochs.

    Raises:
        JobFailed: the training failed; the message contains the reason.
    """
    data = opened.trial_data
    on_train_val = opened.spec.final.fit_on == "train_val"
    last_epoch = int(trial.user_attrs["best_epoch"]) if on_train_val else config.epochs
    stem = f"seed_{config.seed}"
    weights, record, state = (folder / f"{stem}.{end}" for end in ("safetensors", "json", "pt"))
    origin = {"config": config.to_dict(), "fit_on": opened.spec.final.fit_on, "epochs": last_epoch}
    if kept := _read_kept(record, weights, origin):
        on_epoch(config.epochs)
        return kept
    job = TrainJob(
        config.to_dict(),
        data.cache,
        data.train_val if on_train_val else data.train,
        data.val,
        slot,
        weights_path=weights,
        keep="last" if on_train_val else "best",
        state_path=state,
        accumulation_factor=trial.user_attrs.get("accumulation_factor", 1),
        keep_stopped=True,
        imports=required_imports([config.model.name]),
    )
    built = ModelBuilt(0, 0)

    def on_message(message: Any) -> bool:
        nonlocal built
        match message:
            case ModelBuilt():
                built = message
            case EpochRecord(epoch):
                on_epoch(epoch)
                return on_train_val and epoch >= last_epoch
        return False

    memory_bytes = None if slot.memory_gb is None else int(slot.memory_gb * 1e9)
    match supervise_in_parts(job, on_message, StopConditions(memory_bytes=memory_bytes)):
        case Trained(result):
            model = RetrainedModel(config.seed, result, built.params, built.macs, weights)
            kept_model = _KeptModel(origin, _sha256(weights), model)
            atomic_write(record, TypeAdapter(_KeptModel).dump_json(kept_model))
            state.unlink(missing_ok=True)
            return model
        case JobError() as error:
            raise JobFailed(
                f"final: the retraining of trial {trial.number} failed: {describe_job_error(error)}"
            )
    raise AssertionError("a training process ends with Trained or JobError")


def _read_kept(record: Path, weights: Path, origin: dict[str, Any]) -> RetrainedModel | None:
    """Return the complete result of an earlier retraining; None without a valid one."""
    try:
        kept = TypeAdapter(_KeptModel).validate_json(record.read_bytes())
        is_valid = (kept.origin, kept.sha256) == (origin, _sha256(weights))
    except (OSError, ValidationError):
        return None
    return replace(kept.model, weights=weights) if is_valid else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def select_inference(
    opened: OpenStudy, slot: Slot, trial: FrozenTrial, weights: Path
) -> InferenceChoice | None:
    """Select test-time augmentation and post-processing on the validation images.

    The selection is written to the checkpoint ``weights``. A network that was trained on the
    validation images makes atypical errors on them. In that case the selection uses the weights
    that the search stored for the trial, and is copied to ``weights``.

    Returns:
        The selection; None if the study allows no steps or the trial's weights are not stored.
    """
    final = opened.spec.final
    if not (final.tta or final.postprocess):
        return None
    evaluated = weights
    if final.fit_on == "train_val":
        stored = opened.artifact_store.fetch(trial.number, WEIGHTS)
        if stored is None:
            return None
        evaluated = weights.with_name("search.safetensors")
        shutil.copy(stored, evaluated)
    job = SelectInferenceJob(
        evaluated, opened.cache.path, opened.trial_data.val, slot,
        tta=final.tta, postprocess=final.postprocess,
    )  # fmt: skip
    choice = run_job(job, InferenceSelected, "the selection of inference steps").choice
    if evaluated != weights:
        set_inference(weights, choice.inference)
        evaluated.unlink()
    return choice
