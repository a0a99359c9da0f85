"""One training of the final test."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter, ValidationError

from lesionseg.config import TrialConfig
from lesionseg.models import required_imports
from lesionseg.runtime.files import atomic_write
from lesionseg.training.types import EpochRecord, TrainResult
from search.errors import JobFailed
from search.results.evaluation import describe_job_error
from search.results.slot_threads import TaskStopped
from search.study.opening import OpenStudy
from search.trial_process.protocol import (
    ErrorReason,
    JobError,
    ModelBuilt,
    Suspended,
    Trained,
    TrainJob,
)
from search.trial_process.slot import Slot
from search.trial_process.supervisor import StopConditions, supervise_in_parts

#: Errors of a training that others need not have. After any other, such as a full disk, none is
#: started any more.
OWN_ERRORS = frozenset(
    {
        ErrorReason.OOM, ErrorReason.DIVERGED, ErrorReason.CONFIG, ErrorReason.CRASH,
        ErrorReason.TIMEOUT,
    }
)  # fmt: skip


class RetrainingFailed(JobFailed):
    """A retraining failed with one of OWN_ERRORS."""


@dataclass(frozen=True)
class Retraining:
    """What to train.

    trial: the trial whose configuration is trained again.
    config: the configuration with the seed, the image size and the epochs of the final test.
    fit_on: ``train_val`` to train on the validation images too. Then no images are left to select
        an epoch on, and the last one is kept.
    last_epoch: the epoch at whose end the training is stopped.
    """

    trial: FrozenTrial
    config: TrialConfig
    fit_on: Literal["train", "train_val"]
    last_epoch: int

    @property
    def stem(self) -> str:
        """Name of its files."""
        return f"trial_{self.trial.number}_seed_{self.config.seed}_{self.fit_on}"

    @property
    def origin(self) -> dict[str, Any]:
        """What the result depends on."""
        settings = {"fit_on": self.fit_on, "epochs": self.last_epoch}
        return {"config": self.config.to_dict(), **settings}


@dataclass(frozen=True)
class RetrainedModel:
    """One retraining.

    trial: number of the trial. config: its ``TrialConfig`` as plain data. params: trainable
    parameters; macs: multiply-adds per image.
    """

    trial: int
    config: dict[str, Any]
    result: TrainResult
    params: int
    macs: int
    weights: Path

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.config["seed"])

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
    retraining: Retraining,
    folder: Path,
    *,
    deadline: float = math.inf,
    must_suspend: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> RetrainedModel:
    """Train a trial's configuration again.

    The state is saved in the folder, so that the training resumes after an interruption. Batches
    are computed in as many parts as the trial needed.

    Args:
        opened: the study, with the cache of the final test.
        slot: device and number of threads.
        retraining: what to train.
        folder: for the weights, their metadata, and the state of an unfinished training.
        deadline: time of the monotonic clock. The training ends with the last epoch that is
            expected to be finished by then, at least with the first one.
        must_suspend: whether to save the state and to end.
        on_epoch: called with the number of completed epochs.

    Raises:
        RetrainingFailed, JobFailed: the training failed; the message contains the reason.
        TaskStopped: it was suspended.
    """
    data, trial, config = opened.trial_data, retraining.trial, retraining.config
    on_train_val = retraining.fit_on == "train_val"
    weights, record, state = _paths(retraining, folder)
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
            case EpochRecord(epoch, seconds=seconds):
                on_epoch(epoch)
                is_late = time.monotonic() + seconds > deadline
                return epoch >= retraining.last_epoch or is_late
        return False

    memory_bytes = None if slot.memory_gb is None else int(slot.memory_gb * 1e9)
    stall = opened.spec.budget.stall_minutes
    conditions = StopConditions(
        stall_s=None if stall is None else 60 * stall,
        memory_bytes=memory_bytes,
        suspend=must_suspend,
    )
    match supervise_in_parts(job, on_message, conditions):
        case Trained(result):
            model = RetrainedModel(
                trial.number, job.config, result, built.params, built.macs, weights
            )
            kept_model = _KeptModel(retraining.origin, _sha256(weights), model)
            atomic_write(record, TypeAdapter(_KeptModel).dump_json(kept_model))
            state.unlink(missing_ok=True)
            return model
        case JobError() as error:
            kind = RetrainingFailed if error.reason in OWN_ERRORS else JobFailed
            raise kind(
                f"final: the retraining of trial {trial.number} failed: {describe_job_error(error)}"
            )
        case Suspended():
            raise TaskStopped
    raise AssertionError("a training process ends with Trained, Suspended or JobError")


def load_finished(retraining: Retraining, folder: Path) -> RetrainedModel | None:
    """Return the complete result of an earlier retraining; None without a valid one."""
    weights, record, _ = _paths(retraining, folder)
    try:
        kept = TypeAdapter(_KeptModel).validate_json(record.read_bytes())
        is_valid = (kept.origin, kept.sha256) == (retraining.origin, _sha256(weights))
    except (OSError, ValidationError):
        return None
    return replace(kept.model, weights=weights) if is_valid else None


def _paths(retraining: Retraining, folder: Path) -> tuple[Path, Path, Path]:
    """Return the files of the weights, of the result and of the state."""
    weights, record, state = (
        folder / f"{retraining.stem}.{end}" for end in ("safetensors", "json", "pt")
    )
    return weights, record, state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
