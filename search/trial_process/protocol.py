"""Messages between a worker and its training process: jobs one way, progress the other way.

This module imports neither torch nor Optuna.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from search.trial_process.slot import Slot

if TYPE_CHECKING:
    from lesionseg.inference.ensemble_selection import EnsembleChoice
    from lesionseg.inference.evaluate import Evaluation
    from lesionseg.inference.selection import InferenceChoice
    from lesionseg.training.types import EpochRecord, TrainResult

#: Module that runs jobs, with ``run_job(job, pipe)`` and ``describe_error(error, trace)``.
CHILD_PROGRAM = "search.trial_process.child_main"


class ErrorReason(StrEnum):
    """Why a job failed. DATA: an image cannot be read.

    DISK: the disk is full or failing. DEVICE: the GPU is lost, or its driver fails.
    """

    OOM = "oom"
    DIVERGED = "diverged"
    CONFIG = "config"
    DATA = "data"
    DISK = "disk"
    DEVICE = "device"
    TIMEOUT = "timeout"
    CRASH = "crash"


class Reply(StrEnum):
    """Answer to ModelBuilt and EpochRecord. SUSPEND may be sent at any time."""

    CONTINUE = "continue"
    STOP = "stop"
    SUSPEND = "suspend"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """program: the module that runs the job. imports: what the fork server imports besides it."""

    program: str = CHILD_PROGRAM
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainJob(JobOptions):
    """One training. config: a ``TrialConfig`` as plain data; train, val: positions in the cache.

    A training resumes from the state at ``state_path``, if there is one. accumulation_factor:
    greater than 1 after an out-of-memory error. picture_path: for outlines on some validation
    images. keep_stopped: whether a training that ended with STOP writes weights and picture too.
    """

    config: dict[str, Any]
    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    slot: Slot
    weights_path: Path | None = None
    keep: Literal["best", "last"] = "best"
    state_path: Path | None = None
    accumulation_factor: int = 1
    picture_path: Path | None = None
    keep_stopped: bool = False


@dataclass(frozen=True)
class SelectInferenceJob(JobOptions):
    """Selection of inference steps on validation images, which is written to the checkpoint.

    scale_free: whether the steps are for a network of another image size.
    """

    weights: Path
    cache: Path
    val: NDArray[np.int64]
    slot: Slot
    tta: bool = True
    postprocess: bool = True
    scale_free: bool = False


@dataclass(frozen=True)
class SelectEnsembleJob(JobOptions):
    """Selection of an ensemble's members on validation images; the checkpoint ``out`` is written.

    candidates: checkpoints of single networks of the cache's image size. limit: largest number of
    members. val: positions in the cache. With one member, ``out`` is a single network.
    """

    candidates: tuple[Path, ...]
    out: Path
    limit: int
    cache: Path
    val: NDArray[np.int64]
    slot: Slot


@dataclass(frozen=True)
class EvaluateJob(JobOptions):
    """Evaluation on test images.

    records: ``lesionseg.data.index.Record`` of each image. overlays: the folder for overlays of
    the best, the median and the worst image. show: names of the images whose masks are returned.
    best_member: position of an ensemble's member whose speed is measured too.
    """

    weights: Path
    cache: Path
    records: tuple[Any, ...]
    slot: Slot
    overlays: Path | None = None
    show: tuple[str, ...] = ()
    best_member: int | None = None


@dataclass(frozen=True)
class MeasureJob(JobOptions):
    """Measurement of a training's speed with a few steps; nothing is kept.

    config: a ``TrialConfig`` as plain data. members: positions in the cache of the images that are
    trained on and validated. steps: number of measured steps.
    """

    config: dict[str, Any]
    cache: Path
    members: NDArray[np.int64]
    slot: Slot
    steps: int = 3


Job = TrainJob | SelectInferenceJob | SelectEnsembleJob | EvaluateJob | MeasureJob


@dataclass(frozen=True)
class ModelBuilt:
    """The network was built. params: trainable; macs: multiply-adds per image."""

    params: int
    macs: int


@dataclass(frozen=True)
class Resumed:
    """The training resumes from a state that contains these epochs."""

    history: tuple[EpochRecord, ...]


@dataclass(frozen=True)
class StepDone:
    """Sent every few seconds, so that a hang is distinguished from a long epoch."""

    epoch: int
    step: int
    steps: int


@dataclass(frozen=True)
class StateSaved:
    """The training state was written. epoch: number of epochs in it; seconds: its duration."""

    epoch: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Suspended:
    """The training ended on request. epoch: number of epochs in the last saved state.

    saved: whether that is the state at the end; if not, it could not be written in time.
    """

    epoch: int
    saved: bool = True


@dataclass(frozen=True)
class Trained:
    """Result of a TrainJob."""

    result: TrainResult


@dataclass(frozen=True)
class InferenceSelected:
    """Result of a SelectInferenceJob."""

    choice: InferenceChoice


@dataclass(frozen=True)
class EnsembleSelected:
    """Result of a SelectEnsembleJob."""

    choice: EnsembleChoice


@dataclass(frozen=True)
class Evaluated:
    """Result of an EvaluateJob.

    speed: images per second of the network, by "batch" and "single"; of the best member in batches
    by "member". overlays: (kind, file name) of each overlay. shown: the requested masks by image
    name.
    """

    evaluation: Evaluation
    speed: dict[str, float]
    overlays: tuple[tuple[str, str], ...] = ()
    shown: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Result of a MeasureJob: mean durations, peak memory in bytes, and the network's size.

    peak_memory: of the device for CUDA, else of the process. params, macs: as in ModelBuilt.
    """

    seconds_per_step: float
    seconds_per_val_image: float
    peak_memory: int
    params: int
    macs: int


@dataclass(frozen=True)
class JobError:
    """The job failed. message: one line; trace: the end of the traceback."""

    reason: ErrorReason
    message: str
    trace: str = ""


#: The last message of a job.
JobOutcome = (
    Measured | Trained | InferenceSelected | EnsembleSelected | Evaluated | Suspended | JobError
)


def flatten_record(record: EpochRecord) -> dict[str, Any]:
    """Return an epoch record as one row, metrics beside the other values."""
    row = asdict(record)
    metrics: dict[str, Any] = row.pop("metrics")
    return row | metrics
