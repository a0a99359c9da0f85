"""SAMPLERS: who proposes the next configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, QMCSampler, RandomSampler, TPESampler


def build_tpe(seed: int, startup: int) -> BaseSampler:
    """Tree-structured Parzen estimator, multivariate; Watanabe, arXiv:2304.11127.

    ``group`` models parameters that occur together jointly: without it only the parameters of
    every trial would be, and conditional ones (a model's own) drawn one by one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)


def build_random(seed: int, startup: int) -> BaseSampler:
    """Independent draws; the baseline of every search. Bergstra and Bengio, JMLR 2012."""
    return RandomSampler(seed=seed)


def build_qmc(seed: int, startup: int) -> BaseSampler:
    """Scrambled Sobol points: random search with fewer gaps; conditional parameters at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return QMCSampler(seed=seed, warn_independent_sampling=False)


def build_grid(seed: int, startup: int) -> BaseSampler:
    """Every configuration of a finite space, once, conditional parameters included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return BruteForceSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": build_tpe,
    "random": build_random,
    "qmc": build_qmc,
    "grid": build_grid,
}
