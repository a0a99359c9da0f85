"""The first trials of a study: published systems, within its search space or outside of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import DEFAULTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError
from lesionseg.space import Categorical, Domain, Float, Int, Scalar
from search.spec import baselines
from search.spec.search_space import Param, SearchSpace
from search.spec.study_spec import StudySpec
from search.storage.leases import QueueEntry
from search.storage.trial_records import TrialAttr


def first_trials(spec: StudySpec) -> list[QueueEntry]:
    """Return parameters and user attributes of the trials that ``warm_start`` names."""
    return [
        queue_entry(baseline_config(name, spec), spec.space, {TrialAttr.BASELINE: name})
        for name in baselines.expand_names(spec.warm_start)
    ]


def baseline_config(name: str, spec: StudySpec) -> TrialConfig:
    """Return a published system with the image size, epochs, patience and seed of a study.

    Raises:
        InputError: If there is no baseline of that name.
    """
    budget = spec.budget
    return baselines.build_config(
        name, spec.data.image_size, budget.epochs, seed=spec.seed, patience=budget.patience
    )


def queue_entry(config: TrialConfig, space: SearchSpace, attrs: Mapping[str, Any]) -> QueueEntry:
    """Return a queue entry for a configuration.

    A configuration within the search space is queued by its parameters, so that the sampler learns
    from it. Any other is queued as a fixed configuration: it is trained and ranked like any trial,
    but the sampler ignores it.
    """
    params = find_params(config, space)
    if params is None:
        return {}, {**attrs, TrialAttr.FIXED_CONFIG: config.to_dict()}
    return params, attrs


def find_params(config: TrialConfig, space: SearchSpace) -> dict[str, Scalar] | None:
    """Return the trial parameters for which ``suggest`` returns a configuration.

    None if there are none, or if the space has no open parameter.
    """
    plain = config.to_dict()
    params: dict[str, Scalar] = {}
    for family in DEFAULTS:
        component, options = baselines.get_component(plain, family), space.families[family]
        if component.name not in options:
            return None
        if len(options) > 1:
            params[family] = component.name
        if not _add_params(
            options[component.name], component.params, f"{family}.{component.name}.", params
        ):
            return None
    # Settings that a study neither fixes nor searches keep their default.
    settings = {name: domain.default for name, domain in SETTINGS.items()} | dict(space.settings)
    if not _add_params(settings, {name: plain[name] for name in SETTINGS}, "", params):
        return None
    return params or None


def is_open(domain: Domain) -> bool:
    """Return whether a domain has more than one value, so that it is a parameter of trials."""
    match domain:
        case Float(low, high) | Int(low, high):
            return low < high
        case Categorical(choices):
            return len(choices) > 1


def _add_params(
    space: Mapping[str, Param],
    values: Mapping[str, Scalar],
    prefix: str,
    params: dict[str, Scalar],
) -> bool:
    """Add the values of open parameters; return whether all values are within the space."""
    for name, param in space.items():
        if not isinstance(param, Domain):
            if param != values[name]:
                return False
            continue
        try:
            value = param.check(values[name])
        except InputError:
            return False
        if is_open(param):
            params[prefix + name] = value
    return True
