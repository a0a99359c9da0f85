"""PRUNERS: which trials are not worth going on with, judged by their validation Dice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner


def build_median(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Stops a trial whose best so far is below the median of the others at the same epoch.

    Golovin et al., KDD 2017 (Vizier's median stopping rule).
    """
    # Its warm-up counts steps from 0, our epochs count from 1: it judges from min_epochs on.
    return MedianPruner(n_startup_trials=startup, n_warmup_steps=min_epochs)


def build_hyperband(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Successive halving with several first rungs; Li et al., arXiv:1603.06560.

    A third of the trials passes each rung: at min_epochs, 3 x min_epochs, ...
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return HyperbandPruner(min_resource=min_epochs, max_resource=epochs, reduction_factor=3)


def build_none(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Every trial is trained to its end."""
    return NopPruner()


PRUNERS: Mapping[str, Callable[[int, int, int], BasePruner]] = {
    "median": build_median,
    "hyperband": build_hyperband,
    "none": build_none,
}
