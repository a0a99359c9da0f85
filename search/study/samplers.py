"""SAMPLERS: the samplers that a study may name."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search.storage import trial_records
from search.storage.optuna_internals import (
    FilteredBruteForceSampler,
    GroupedTpeSampler,
    cached_trials,
    split_trials,
)
from search.study.cross_validation import FoldPruner
from search.study.opening import OpenStudy
from search.study.pruners import PRUNERS

#: Largest number of trials, the good ones aside, that TPE models per group of parameters.
MAX_MODELLED = 500

#: States of trials that TPE learns from.
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)

#: Trials by number: the good ones, the others by parameter (a trial with one parameter of a group
#: has all of them), and the running ones, which belong to every group.
_Split = tuple[list[FrozenTrial], dict[str, list[FrozenTrial]], list[FrozenTrial]]


class BoundedTPE(GroupedTpeSampler):
    """Optuna's multivariate, grouped TPE with a bounded number of modelled trials.

    Needed for long studies: the cost of Optuna's own grows with every trial
    (bench/results/sampling-cpu.md). Without groups, the conditional parameters of a model would be
    sampled independently of each other.

    TPE proposes the maximum of l(x)/g(x), where l is the density of the good trials and g that of
    the others. The good ones are chosen among all trials by Optuna's gamma, a tenth of them and at
    most 25 (Watanabe, arXiv:2304.11127, section 3.1), so l does not depend on the bound. g has one
    kernel per other trial, with weights that rise with the trial's number. A mixture of every k-th
    kernel with weights of the same ramp estimates the same density.

    Optuna reads and splits all trials once per group; here this is done once per proposal. Trials
    with a fixed configuration, from outside the space, are ignored.

    Args:
        seed: Of the random numbers.
        startup: Number of random trials.
        bound: Number of other trials that g is made of, at least 1, per group of parameters, evenly
            spaced by number. All running trials are in g besides, so that workers do not propose
            the same configuration. With fewer trials every proposal equals Optuna's.
    """

    def __init__(self, seed: int, startup: int, bound: int = MAX_MODELLED) -> None:
        super().__init__(seed, startup)
        self._startup, self._bound = startup, bound
        self._split: _Split | None = None

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the parameters of all groups, after reading the trials once."""
        if self._is_starting_up(study):
            return {}
        self._split = _split_by_param(study, trial)
        try:
            return super().sample_relative(study, trial, search_space)
        finally:
            self._split = None

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample a parameter that no trial had before."""
        starting_up = self._is_starting_up(study)
        sample = self.sample_randomly if starting_up else super().sample_independent
        return sample(study, trial, param_name, param_distribution)

    def trials_to_model(
        self, study: optuna.Study, trial: FrozenTrial, param: str
    ) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return all good trials, and at most ``bound`` others with the parameter, and all running.

        The others are evenly spaced, and the latest is one of them.
        """
        good, by_param, running = self._split or _split_by_param(study, trial)
        others, n = by_param.get(param, []), self._bound
        if len(others) > n:
            others = [others[-1 - i * len(others) // n] for i in reversed(range(n))]
        return good, sorted(others + running, key=lambda t: t.number)

    def _is_starting_up(self, study: optuna.Study) -> bool:
        ended = cached_trials(study, ENDED)
        return sum(not trial_records.has_fixed_config(t) for t in ended) < self._startup


def _split_by_param(study: optuna.Study, trial: FrozenTrial) -> _Split:
    """Split all trials but this one; see _Split."""
    # Not from the cache, which does not have what other workers have started since.
    trials = study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING))
    # A fixed configuration has no parameters; as a good trial it would only take up a place.
    trials = [t for t in trials if not trial_records.has_fixed_config(t)]
    good, others = split_trials(study, [t for t in trials if t.state != TrialState.RUNNING])
    by_param: dict[str, list[FrozenTrial]] = defaultdict(list)
    for other in others:
        for name in other.params:
            by_param[name].append(other)
    running = [t for t in trials if t.state == TrialState.RUNNING and t.number != trial.number]
    return good, by_param, running


class _SobolSampler(QMCSampler):
    """Sobol sequence for studies whose first trials may have no parameters."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        # Optuna takes the parameters of the first trial, but a baseline may have none.
        for ended in study.get_trials(deepcopy=False, states=ENDED):
            if ended.distributions:
                return dict(ended.distributions)
        return super().infer_relative_search_space(study, trial)


class _GridSampler(FilteredBruteForceSampler):
    """All configurations of a finite space, each once; for ask and tell and interrupted trials."""

    @staticmethod
    def is_explored(trial: FrozenTrial) -> bool:
        """Return False for interrupted trials and fixed configurations, which lack parameters."""
        return not (trial_records.was_interrupted(trial) or trial_records.has_fixed_config(trial))

    def after_trial(self, *_: Any) -> None:
        """Do nothing: Optuna stops ``study.optimize`` here, which raises with ask and tell."""


def _build_experimental(sampler: Callable[..., BaseSampler], **options: Any) -> BaseSampler:
    """Build a sampler that Optuna calls experimental, without the warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return sampler(**options)


#: The builders take the seed and the number of startup trials.
SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": BoundedTPE,
    # Bergstra and Bengio, JMLR 2012.
    "random": lambda seed, startup: RandomSampler(seed=seed),
    "qmc": lambda seed, startup: _build_experimental(
        _SobolSampler, seed=seed, warn_independent_sampling=False
    ),
    "grid": lambda seed, startup: _build_experimental(_GridSampler, seed=seed),
}


def prepare_sampling(opened: OpenStudy, ordinal: int = 0) -> None:
    """Set the sampler and the pruner of the spec.

    The sampler's seed depends on the number of trials, so that a resumed study does not repeat its
    first trials, and on the worker.

    Args:
        opened: The study.
        ordinal: Number of the worker, from 0.
    """
    spec, study = opened.spec, opened.study
    n_trials = len(trial_records.all_trials(study))
    seed = (spec.seed + 1_000_003 * n_trials + 7_368_787 * ordinal) % 2**31
    study.sampler = SAMPLERS[spec.sampler.name](seed, spec.sampler.startup)
    study.pruner = PRUNERS[spec.pruner.name](
        spec.budget.epochs, spec.pruner.min_epochs, spec.pruner.startup
    )
    if spec.data.split.kfold and spec.pruner.name != "none":
        study.pruner = FoldPruner(study.pruner, spec.budget.epochs, spec.pruner.startup)
