"""The private names of Optuna 5 that this project uses, behind names of its own.

No other module uses them. ``PRIVATE_SYMBOLS`` lists them for the test that finds those that a new
Optuna version moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BruteForceSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace, _SearchSpaceGroup
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage as CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _logger as rdb_storage_logger
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

# Optuna's own names that other modules use.
__all__ = ["CachedStorage", "FrozenStudy", "models", "rdb_storage_logger"]

#: Every private name used here, by module. ``Class()`` stands for an instance.
PRIVATE_SYMBOLS = {
    "optuna.samplers": (
        "BruteForceSampler._populate_tree TPESampler._build_parzen_estimator TPESampler._compare "
        "TPESampler._compute_acquisition_func TPESampler._sample TPESampler._sample_relative "
        "TPESampler()._group_decomposed_search_space TPESampler()._n_ei_candidates "
        "TPESampler()._random_sampler TPESampler()._rng"
    ),
    "optuna.samplers._tpe.sampler": "_split_trials default_gamma",
    "optuna.search_space.group_decomposed": (
        "_GroupDecomposedSearchSpace.calculate _GroupDecomposedSearchSpace()._search_space "
        "_SearchSpaceGroup.add_distributions _SearchSpaceGroup()._search_spaces"
    ),
    "optuna.storages": (
        "RDBStorage._create_new_trial RDBStorage._fill_storage_url_template "
        "RDBStorage._get_best_trial_id RDBStorage._get_prepared_new_trial RDBStorage._get_trials "
        "RDBStorage._set_trial_intermediate_value_without_commit RDBStorage._set_trial_param "
        "RDBStorage._set_trial_param_without_commit RDBStorage._set_trial_value_without_commit"
    ),
    "optuna.storages._cached_storage": "_CachedStorage",
    "optuna.storages._rdb.storage": "_logger",
    "optuna.storages._rdb.models": (
        "BaseModel.metadata MAX_INDEXED_STRING_LENGTH SCHEMA_VERSION StudyDirectionModel "
        "StudyModel.find_or_raise_by_id StudySystemAttributeModel StudyUserAttributeModel "
        "TrialIntermediateValueModel.intermediate_value_to_stored_repr "
        "TrialIntermediateValueModel.stored_repr_to_intermediate_value "
        "TrialModel._datetime_complete_utc TrialModel._datetime_start_utc "
        "TrialModel.find_or_raise_by_id TrialParamModel TrialSystemAttributeModel "
        "TrialUserAttributeModel TrialValueModel.stored_repr_to_value "
        "TrialValueModel.value_to_stored_repr VersionInfoModel"
    ),
    "optuna.study": "Study()._storage Study()._study_id Study()._thread_local Study._get_trials",
    "optuna.study._frozen": "FrozenStudy",
    "optuna.trial": (
        "FrozenTrial()._trial_id FrozenTrial._validate "
        "Trial()._cached_frozen_trial Trial()._trial_id"
    ),
}

#: A row of Optuna's tables. Their columns carry no types.
Row = Any


def study_id(study: optuna.Study | FrozenStudy) -> int:
    """Return a study's id in its storage."""
    return study._study_id


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """Return a trial's id in its storage, which is not its number."""
    return trial._trial_id


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return a study's storage; for a database this is Optuna's cache in front of it."""
    return study._storage


def unwrap_storage(storage: BaseStorage) -> BaseStorage:
    """Return the storage behind Optuna's cache of finished trials, if there is a cache."""
    return storage._backend if isinstance(storage, CachedStorage) else storage


def cached_trial(trial: optuna.Trial) -> FrozenTrial:
    """Return the record of a running trial as this process knows it; changes are local."""
    return trial._cached_frozen_trial


def cached_trials(study: optuna.Study, states: Container[TrialState]) -> list[FrozenTrial]:
    """Return trials as this thread read them when its current trial began; not to be changed."""
    return study._get_trials(deepcopy=False, states=states, use_cache=True)


def forget_cached_trials(study: optuna.Study) -> None:
    """Drop what ``cached_trials`` returns, so that the next call reads the storage."""
    study._thread_local.cached_all_trials = None


def validate_trial(trial: FrozenTrial) -> None:
    """Raise ValueError if a trial's state, values, times and parameters contradict."""
    trial._validate()


class OptunaStorage(RDBStorage):
    """RDBStorage with public hooks and with public writes that do not commit.

    A subclass may override the hooks and the public methods of RDBStorage. Optuna calls the private
    methods below; each of them leads to a public one.
    """

    # Hooks.
    read_trials = RDBStorage._get_trials
    write_param = RDBStorage._set_trial_param
    write_trial = RDBStorage._create_new_trial
    find_best_trial_id = RDBStorage._get_best_trial_id

    # Writes in the caller's session.
    add_trial = RDBStorage._get_prepared_new_trial
    add_param = RDBStorage._set_trial_param_without_commit
    add_value = RDBStorage._set_trial_value_without_commit
    add_intermediate_value = RDBStorage._set_trial_intermediate_value_without_commit

    def _create_new_trial(self, *args: Any, **kwargs: Any) -> FrozenTrial:
        return self.write_trial(*args, **kwargs)

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        return self.read_trials(*args, **kwargs)

    def _get_best_trial_id(self, *args: Any) -> int:
        return self.find_best_trial_id(*args)

    def _set_trial_param(self, *args: Any) -> None:
        self.write_param(*args)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # a password may contain braces


def split_trials(
    study: optuna.Study, trials: list[FrozenTrial]
) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """Split ended trials into the good ones of TPE, as many as ``default_gamma``, and the rest."""
    return _split_trials(study, trials, default_gamma(len(trials)))


class GroupedTpeSampler(TPESampler):
    """Multivariate, grouped TPE whose good and other trials a subclass chooses."""

    def __init__(self, seed: int, n_startup_trials: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(
                seed=seed, n_startup_trials=n_startup_trials, multivariate=True, group=True
            )
        self._group_decomposed_search_space = _IncrementalGroups(include_pruned=True)

    def trials_to_model(
        self, study: optuna.Study, trial: FrozenTrial, param: str
    ) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return the good and the other trials for the group that holds the parameter."""
        raise NotImplementedError

    def sample_randomly(self, *args: Any) -> Any:
        """Sample one parameter uniformly, with the arguments of ``sample_independent``."""
        return self._random_sampler.sample_independent(*args)

    def _sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sample(study, trial, search_space) if search_space else {}

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        good, others = self.trials_to_model(study, trial, next(iter(search_space)))
        below = self._build_parzen_estimator(study, search_space, good, handle_below=True)
        above = self._build_parzen_estimator(study, search_space, others, handle_below=False)
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: space.to_external_repr(best[name]) for name, space in search_space.items()}


_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class _IncrementalGroups(_GroupDecomposedSearchSpace):
    """Optuna adds every trial at every proposal; here each is added once, with the same result."""

    def __init__(self, include_pruned: bool) -> None:
        super().__init__(include_pruned)
        self._added: set[int] = set()

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> _SearchSpaceGroup:
        for trial in study._get_trials(deepcopy=False, states=_ENDED, use_cache=use_cache):
            if trial.number not in self._added:
                self._added.add(trial.number)
                self._search_space.add_distributions(trial.distributions)
        groups = _SearchSpaceGroup()
        groups._search_spaces = [dict(space) for space in self._search_space.search_spaces]
        return groups


class FilteredBruteForceSampler(BruteForceSampler):
    """Exhaustive search that takes only some of the study's trials for explored."""

    @staticmethod
    def is_explored(trial: FrozenTrial) -> bool:
        """Return whether a trial's parameters count as a path through the search space."""
        raise NotImplementedError

    @classmethod
    def _populate_tree(
        cls, tree: Any, trials: Sequence[FrozenTrial], params: dict[str, Any]
    ) -> None:
        explored = [trial for trial in trials if cls.is_explored(trial)]
        BruteForceSampler._populate_tree(tree, explored, params)
