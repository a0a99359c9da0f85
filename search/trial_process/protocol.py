"""What a worker and a training's process say to each other: jobs one way, messages the other.

Neither torch nor Optuna is needed to read or to write them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lesionseg.training.types import EpochRecord

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: The module that does jobs: its ``work(job, pipe)`` gives the last message.
PROGRAM = "search.trial_process.child_main"
#: Why a job could not be done; data: its pictures cannot be read; disk: it is full.
Reason = Literal["oom", "diverged", "config", "data", "disk", "timeout", "crash"]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is done. program: the module whose ``work`` does it.

    imports: what the server that children are forked from imports besides, if it starts with it.
    """

    program: str = PROGRAM
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainJob(JobOptions):
    """One training. train, val: positions in the cache at ``cache``.

    state: where the training's state is kept, and gone on from if one is there. parts: each batch
    is computed in so many times more parts than the configuration says, for want of memory. share:
    of the GPU's memory, which is enforced. picture: where a picture of some validation images is
    drawn at the end, if anywhere; it needs save_to.
    """

    config: dict[str, Any]
    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    device: str
    threads: int
    save_to: Path | None = None
    keep: Literal["best", "last"] = "best"
    state: Path | None = None
    parts: int = 1
    share: float = 1.0
    picture: Path | None = None


@dataclass(frozen=True)
class ChooseJob(JobOptions):
    """The choice of what is done to a network's output, on validation images alone.

    members: positions in the cache. The choice is noted in the checkpoint ``weights``.
    """

    weights: Path
    cache: Path
    members: NDArray[np.int64]
    device: str
    threads: int
    tta: bool = True
    postprocess: bool = True


@dataclass(frozen=True)
class TestJob(JobOptions):
    """One test. records: lesionseg.data.index.Record of each image.

    overlays: where pictures of the best, the median and the worst are drawn, if anywhere.
    show: names of records whose predicted masks are wanted.
    """

    weights: Path
    cache: Path
    records: tuple[Any, ...]
    device: str
    threads: int
    overlays: Path | None = None
    show: tuple[str, ...] = ()


Job = TrainJob | ChooseJob | TestJob


@dataclass(frozen=True)
class ModelBuilt:
    """The network was built: its trainable parameters, and its multiply-adds for one image."""

    params: int
    macs: int


@dataclass(frozen=True)
class Resumed:
    """The training goes on from its state; history: lesionseg.training.train.EpochRecord of each epoch."""

    history: tuple[Any, ...]


@dataclass(frozen=True)
class StepDone:
    """A step was done; said every few seconds, so that a hang is told from long epochs."""

    epoch: int
    step: int
    steps: int


@dataclass(frozen=True)
class StateSaved:
    """The training's state was written; epoch: how many are in it."""

    epoch: int


@dataclass(frozen=True)
class Suspended:
    """The training was put down as asked, its state saved with so many epochs in it."""

    epoch: int


@dataclass(frozen=True)
class Trained:
    """The end of a TrainJob; result: lesionseg.training.train.TrainResult."""

    result: Any


@dataclass(frozen=True)
class Chosen:
    """The end of a ChooseJob; choice: lesionseg.inference.selection.Choice."""

    choice: Any


@dataclass(frozen=True)
class Tested:
    """The end of a TestJob.

    evaluation: lesionseg.inference.evaluate.Evaluation. speed: images a second of the network alone, in
    batches and one by one. overlays: (kind, file's name) of each. shown: the masks wanted.
    """

    evaluation: Any
    speed: dict[str, float]
    overlays: tuple[tuple[str, str], ...] = ()
    shown: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class JobError:
    """The job could not be done; message: one line; trace: for whoever looks closer."""

    reason: Reason
    message: str
    trace: str = ""


#: What may be the last message of a job.
JobOutcome = Trained | Chosen | Tested | Suspended | JobError
#: Answers to Built and EpochRecord, and what may be said at any time.
GO_ON, STOP, SUSPEND = "go on", "stop", "suspend"


def flat(record: EpochRecord) -> dict[str, Any]:
    """An epoch as one row."""
    row = asdict(record)
    return {**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]}
