"""The images that the trials of a study train on and are validated with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrialData:
    """Positions of a study's images in their cache.

    cache: path of the cache.
    train, val: of the training; with a cross-validation, of its first fold.
    folds: train and val of each fold; empty without a cross-validation.
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
        """All images of train and val, over all folds."""
        if not self.folds:
            return np.concatenate([self.train, self.val])
        return np.unique(np.concatenate([part for fold in self.folds for part in fold]))
