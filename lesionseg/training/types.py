"""What goes into a training and what comes out of it: plain data, fit for another process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.cache import Cache
from lesionseg.metrics import Metrics

Stopped = Literal["finished", "early", "asked"]


class Diverged(RuntimeError):
    """The training loss or the network's output became NaN or infinite."""


class Suspended(RuntimeError):
    """The training was asked to stop for now; given the same state again it goes on.

    epoch: how many epochs were completed. saved: False if no state was wanted, or could be
    written; it then goes on from the state before, or from the beginning.
    """

    def __init__(self, epoch: int, saved: bool = True) -> None:
        super().__init__(epoch, saved)
        self.epoch, self.saved = epoch, saved

    def __str__(self) -> str:
        kept = "its state is saved" if self.saved else "its state could not be saved"
        return f"suspended after {self.epoch} epochs; {kept}"


@dataclass(frozen=True)
class TrainData:
    """A cache at the configuration's image size and the positions in it to train and judge on."""

    cache: Cache
    train: NDArray[np.int64]
    val: NDArray[np.int64]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave. Epochs count from 1; lr is that of its last step; seconds its own."""

    epoch: int
    train_loss: float
    val_loss: float
    metrics: Metrics
    lr: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """best: the record of the epoch whose weights were kept. peak_memory: bytes, of the device
    for CUDA and else of the process. checkpoint: where the weights lie, if a path was given.
    Of a training that was suspended, seconds are summed and peak_memory is the most."""

    best: EpochRecord
    history: tuple[EpochRecord, ...]
    stopped: Stopped
    seconds: float
    peak_memory: int
    checkpoint: Path | None
