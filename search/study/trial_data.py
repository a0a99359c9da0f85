"""The images that the trials of a study train and are judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrialData:
    """What every trial of a study trains and is judged on: positions in one cache.

    folds: train and val of each training of a cross-validation, train and val being the first
    one's; none where a trial is one training.
    """

    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...] = ()

    @property
    def trainings(self) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
        """Train and val of each training of a trial."""
        return self.folds or ((self.train, self.val),)

    @property
    def train_val(self) -> NDArray[np.int64]:
        """All that some training learns from or is judged on."""
        if not self.folds:
            return np.concatenate([self.train, self.val])
        return np.unique(np.concatenate([part for fold in self.folds for part in fold]))
