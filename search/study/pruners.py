"""PRUNERS: the pruners that a study may name. All of them judge by the validation Dice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

from search.study.halving import Halving
from search.study.hyperband import Hyperband


class _MedianPruner(MedianPruner):
    """Vizier's median stopping rule; Golovin et al., KDD 2017.

    During the warm-up Optuna reads all trials, this class does not.
    """

    def __init__(self, startup: int, min_epochs: int) -> None:
        # Optuna counts warm-up steps from 0 and epochs count from 1: it prunes from min_epochs on.
        super().__init__(n_startup_trials=startup, n_warmup_steps=min_epochs)
        self.min_epochs = min_epochs

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        epoch = trial.last_step
        return epoch is not None and epoch >= self.min_epochs and super().prune(study, trial)


#: The builders take the most and the fewest epochs and the number of startup trials.
PRUNERS: Mapping[str, Callable[[int, int, int], BasePruner]] = {
    "halving": lambda epochs, min_epochs, startup: Halving(min_epochs, epochs),
    "median": lambda epochs, min_epochs, startup: _MedianPruner(startup, min_epochs),
    "hyperband": lambda epochs, min_epochs, startup: Hyperband(min_epochs, epochs),
    "none": lambda epochs, min_epochs, startup: NopPruner(),
}
