"""SAMPLERS: who proposes the next configuration."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

#: TPE models this many of the trials that are not good, for each group of parameters.
MODELLED = 500

#: States of trials that TPE learns from.
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def build_tpe(seed: int, startup: int) -> BaseSampler:
    """Tree-structured Parzen estimator, multivariate; Watanabe, arXiv:2304.11127.

    ``group`` models parameters that occur together jointly: without it only the parameters of
    every trial would be, and conditional ones (a model's own) drawn one by one.
    """
    return BoundedTPE(seed, startup)


def build_random(seed: int, startup: int) -> BaseSampler:
    """Independent draws; the baseline of every search. Bergstra and Bengio, JMLR 2012."""
    return RandomSampler(seed=seed)


def build_qmc(seed: int, startup: int) -> BaseSampler:
    """Sobol points: random search with fewer gaps; conditional parameters at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _Sobol(seed=seed, warn_independent_sampling=False)


def build_grid(seed: int, startup: int) -> BaseSampler:
    """Every configuration of a finite space, once, conditional parameters included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _EveryOne(seed=seed)


class BoundedTPE(GroupedTpeSampler):
    """Optuna's multivariate TPE with groups, at a cost that a long study does not raise.

    TPE proposes where l(x)/g(x) is largest: l is the density of the good trials, g that of the
    others. Which are good is settled over all trials by Optuna's own gamma, a tenth and at most
    25 (``optuna_internals.default_gamma``; Watanabe, arXiv:2304.11127, section 3.1):
    l is Optuna's own whatever the bound. g is a mixture with one kernel for each other trial.
    Its weights rise with the trial's number, so that a mixture of every k-th kernel with weights
    of the same ramp is the same density, but for the noise of a sample of ``bound`` kernels.

    bound: the other trials that g is made of, at least 1, for each group of parameters: an even
    spread, by number, over those that have them. Trials at work are in g besides, all of them:
    many workers must not draw one configuration twice. Up to the bound every proposal is
    Optuna's own, digit for digit.

    Optuna reads and splits all trials anew for each group; here it is done once for each trial.
    Trials whose configuration was given, outside the space, are not seen at all.
    """

    def __init__(self, seed: int, startup: int, bound: int = MODELLED) -> None:
        super().__init__(seed, startup)
        self._startup, self._bound = startup, bound
        self._split: _Split | None = None

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Every group's parameters, from one reading of the study."""
        if self._begins(study):
            return {}
        self._split = _Split.of(study, trial)
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
        """A parameter that no trial had before; at random while the study begins."""
        draw = self.sample_randomly if self._begins(study) else super().sample_independent
        return draw(study, trial, param_name, param_distribution)

    def _begins(self, study: optuna.Study) -> bool:
        """Whether fewer trials than it begins with were drawn and have ended."""
        ended = cached_trials(study, ENDED)
        return sum(not trial_records.has_fixed_config(t) for t in ended) < self._startup

    def trials_to_model(
        self, study: optuna.Study, trial: FrozenTrial, param: str
    ) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return all good trials, and at most ``bound`` others that have the parameter."""
        split = self._split or _Split.of(study, trial)
        return split.good, split.others_with(param, self._bound)


@dataclass(frozen=True)
class _Split:
    """A study's trials as TPE sees them, by number.

    others: those that are not good, under the name of each of their parameters; a trial that has
    one parameter of a group has them all. running: those at work, which belong to every group.
    """

    good: list[FrozenTrial]
    others: dict[str, list[FrozenTrial]]
    running: list[FrozenTrial]

    @classmethod
    def of(cls, study: optuna.Study, trial: FrozenTrial) -> _Split:
        """All trials but this one, split as Optuna does it."""
        # Not from the cache of the trial: what other workers are at now is to be seen.
        known = study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING))
        # A configuration that was given has none of the space's parameters: among the good ones it
        # would take the place of one that has, and say nothing itself.
        known = [t for t in known if not trial_records.has_fixed_config(t)]
        running = [t for t in known if t.state == TrialState.RUNNING and t.number != trial.number]
        ended = [t for t in known if t.state != TrialState.RUNNING]
        good, others = split_trials(study, ended)
        format_step: dict[str, list[FrozenTrial]] = defaultdict(list)
        for other in others:
            for name in other.params:
                format_step[name].append(other)
        return cls(good, format_step, running)

    def others_with(self, name: str, bound: int) -> list[FrozenTrial]:
        """An even spread of those with the parameter, the latest among them; all at work."""
        known = self.others.get(name, [])
        if len(known) > bound:
            known = [known[-1 - i * len(known) // bound] for i in reversed(range(bound))]
        return sorted(known + self.running, key=lambda t: t.number)


class _Sobol(QMCSampler):
    """Optuna's, for studies that begin with configurations from outside their space."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        # Optuna's takes the first trial's parameters for the space; a baseline may have none.
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        drawn = [t for t in ended if t.distributions]
        if drawn:
            return dict(drawn[0].distributions)
        return super().infer_relative_search_space(study, trial)


class _EveryOne(FilteredBruteForceSampler):
    """Exhaustive search for ask and tell, and for trials that were cut off."""

    @staticmethod
    def is_explored(trial: FrozenTrial) -> bool:
        """Return False for a trial that is queued again and for a configuration given as a whole.

        Either may lack parameters: a path that ends early would be taken for another space.
        """
        return not trial_records.was_interrupted(trial) and not trial_records.has_fixed_config(
            trial
        )

    def after_trial(self, *_: Any) -> None:
        """Nothing: Optuna's ends study.optimize() here, and raises where trials are asked for."""


SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": build_tpe,
    "random": build_random,
    "qmc": build_qmc,
    "grid": build_grid,
}
