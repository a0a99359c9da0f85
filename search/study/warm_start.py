"""The first trials of a study: published systems, as its space can say them or as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import DEFAULTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError
from lesionseg.space import Categorical, Domain, Float, Int, Scalar
from search.spec import baselines
from search.spec.search_space import Param, SearchSpace
from search.spec.study_spec import StudySpec
from search.storage import trial_records

Queue = list[tuple[dict[str, Any], dict[str, Any]]]


def queue(spec: StudySpec) -> Queue:
    """Parameters and user attributes of the trials that a spec's ``warm_start`` names.

    A baseline that lies within the study's space is queued by its parameters, so that the sampler
    learns from it. One that does not is queued as it is: it is trained and ranked like any trial,
    and the sampler knows nothing of it.
    """
    return [_queued(name, spec) for name in baselines.expand_names(spec.warm_start)]


def baseline_config(name: str, spec: StudySpec) -> TrialConfig:
    """A published system under a study's image size, epochs, patience and seed.

    Raises InputError where there is none of the name.
    """
    budget = spec.budget
    return baselines.build_config(
        name, spec.data.image_size, budget.epochs, seed=spec.seed, patience=budget.patience
    )


def _queued(name: str, spec: StudySpec) -> tuple[dict[str, Any], dict[str, Any]]:
    config = baseline_config(name, spec)
    params = find_params(config, spec.space)
    attrs: dict[str, Any] = {trial_records.TrialAttr.BASELINE: name}
    if params is None:
        attrs[trial_records.TrialAttr.FIXED_CONFIG] = config.to_dict()
    return dict(params or {}), attrs


def find_params(config: TrialConfig, space: SearchSpace) -> dict[str, Scalar] | None:
    """The trial parameters that make ``suggest`` give this very configuration; None if none do.

    Parameters have the dotted names of ``search.study.suggest``. A space without any choice expresses
    its one configuration by no parameters at all; that is None too, as there is nothing to learn.
    """
    plain = config.to_dict()
    found: dict[str, Scalar] = {}
    for family in DEFAULTS:
        pick, options = baselines.get_pick(plain, family), space.families[family]
        if pick.name not in options:
            return None
        if len(options) > 1:
            found[family] = pick.name
        if not _within(options[pick.name], pick.params, f"{family}.{pick.name}.", found):
            return None
    # What a study neither fixes nor searches stands at its default, which suggest() leaves to it.
    settings = {name: domain.default for name, domain in SETTINGS.items()} | dict(space.settings)
    if not _within(settings, {name: plain[name] for name in SETTINGS}, "", found):
        return None
    return found or None


def _within(
    params: Mapping[str, Param], values: Mapping[str, Scalar], prefix: str, into: dict[str, Scalar]
) -> bool:
    for name, param in params.items():
        if not isinstance(param, Domain):
            if param != values[name]:
                return False
            continue
        try:
            value = param.check(values[name])
        except InputError:
            return False
        if is_open(param):
            into[prefix + name] = value
    return True


def is_open(domain: Domain) -> bool:
    """Whether a domain leaves a choice, so that a trial has a parameter of it."""
    match domain:
        case Float(low, high) | Int(low, high):
            return low < high
        case Categorical(choices):
            return len(choices) > 1
