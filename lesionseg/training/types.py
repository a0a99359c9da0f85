"""Input, options and result of a training: plain data that other processes can receive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lesionseg.data.cache import Cache
from lesionseg.metrics.overlap import Metrics


class TrainingEnd(StrEnum):
    """Why a training ended."""

    FINISHED = "finished"
    EARLY = "early"  # early stopping: no better epoch within the configuration's patience
    CALLBACK = "callback"  # ``on_epoch`` returned True


class Diverged(RuntimeError):
    """The training or validation loss became NaN or infinite."""


class Suspended(RuntimeError):
    """The training was suspended on request after ``epoch`` epochs.

    With the same state file it is resumed. If the state could not be saved, it resumes from an
    older one or starts again.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"suspended after {epoch} epochs")
        self.epoch = epoch


@dataclass(frozen=True)
class TrainData:
    """A cache of the configuration's image size, and the positions in it for each purpose."""

    cache: Cache
    train: NDArray[np.int64]
    val: NDArray[np.int64]


@dataclass(frozen=True)
class TrainOptions:
    """How to run a training; except for ``model`` and ``keep`` the result does not depend on it.

    device: device to train on.
    model: network built beforehand from the configuration; None builds one. After the training it
        has the kept weights.
    weights_path: .safetensors file for the kept weights; None writes none.
    should_write: called at the end; False writes no weights.
    keep: whether to keep the weights of the epoch with the best validation Dice or of the last.
    state_path: file for the state of the unfinished training. A valid state of the same training
        is resumed; otherwise the training starts from the beginning. The file remains after the
        training; the caller deletes it once the result is safe.
    accumulation_factor: multiplies ``config.accumulate``: batches are computed in more parts, for
        less memory. Resuming with another factor is possible, but not bit-exact.
    should_suspend: called between steps and between validation batches; True saves the state and
        raises Suspended. An interrupted validation is repeated from its beginning.
    on_resume: called first if a state was loaded, with the completed epochs. ``on_epoch`` is
        called again for epochs after the last save.
    on_step: called after each step with epoch and step, from 1, and the steps per epoch.
    on_saved: called after each save of the state with the number of completed epochs and the
        duration of the save in seconds.
    """

    device: torch.device = torch.device("cpu")
    model: nn.Module | None = None
    weights_path: Path | None = None
    should_write: Callable[[], bool] = lambda: True
    keep: Literal["best", "last"] = "best"
    state_path: Path | None = None
    accumulation_factor: int = 1
    should_suspend: Callable[[], bool] = lambda: False
    on_resume: Callable[[tuple[EpochRecord, ...]], None] = lambda records: None
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None
    on_saved: Callable[[int, float], None] = lambda epochs, seconds: None


@dataclass(frozen=True)
class EpochRecord:
    """Results of one epoch, counted from 1; ``lr`` of its last step; ``seconds`` of this epoch."""

    epoch: int
    train_loss: float
    val_loss: float
    metrics: Metrics
    lr: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Result of a training.

    best: record of the epoch whose weights were kept.
    seconds: training time, summed over suspensions.
    peak_memory: bytes, of the device for CUDA, else of the process; the maximum over suspensions.
    checkpoint: file of the weights, if they were written.
    """

    best: EpochRecord
    history: tuple[EpochRecord, ...]
    stopped: TrainingEnd
    seconds: float
    peak_memory: int
    checkpoint: Path | None
