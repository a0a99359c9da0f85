"""SAMPLERS: who proposes the next configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search import trials


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
        return _Sobol(seed=seed, warn_independent_sampling=False)


def build_grid(seed: int, startup: int) -> BaseSampler:
    """Every configuration of a finite space, once, conditional parameters included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _EveryOne(seed=seed)


class _Sobol(QMCSampler):
    """Optuna's, for studies that begin with configurations from outside their space."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        # Optuna's takes the first trial's parameters for the space; a preset may have none.
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        drawn = [t for t in ended if t.distributions]
        if drawn:
            return dict(drawn[0].distributions)
        return super().infer_relative_search_space(study, trial)


class _EveryOne(BruteForceSampler):
    """Optuna's, fit for ask and tell and for trials that were cut off."""

    @staticmethod
    def _populate_tree(tree: Any, known: list[FrozenTrial], params: dict[str, Any]) -> None:
        # What was cut off is queued again, and a preset may lie outside the space. Either may
        # lack parameters, and a path that ends early would be taken for another space.
        whole = [t for t in known if not trials.was_cut_off(t) and not trials.is_given(t)]
        BruteForceSampler._populate_tree(tree, whole, params)

    def after_trial(self, *_: Any) -> None:
        """Nothing: Optuna's ends study.optimize() here, and raises where trials are asked for."""


SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": build_tpe,
    "random": build_random,
    "qmc": build_qmc,
    "grid": build_grid,
}
