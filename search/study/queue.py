"""The queue of a study: first trials, finished trials again, or configurations from a file.

A file holds one configuration or a list of them, in YAML:

    {model: {unet: {width: 32}}, loss: dice, batch_size: 8}    the rest is sampled
    {baseline: unet-dice}                                      a published system
    {config: {...}}                                            complete, as a trial's config

The first form is a point of the study's search space. The others may be outside of it: such a trial
is trained and ranked like any other, but the sampler ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError, suggest_name
from lesionseg.space import Categorical, Domain, Scalar, format_value
from search.spec import baselines, yaml_loader
from search.spec.loading import join_errors
from search.spec.search_space import Param, SearchSpace, find_size_errors
from search.spec.study_spec import DEFAULTS, StudySpec
from search.storage import trial_records
from search.storage.leases import QueueEntry, TrialLeases
from search.storage.trial_records import StudyAttr, TrialAttr
from search.study.encoder_weights import replace_auto


def retry_trials(study: optuna.Study, numbers: Sequence[int]) -> list[int]:
    """Queue finished trials again, all or none; return the numbers of the new trials.

    Raises:
        InputError: With all errors: no such trial, not finished, or without a configuration.
    """
    trials = trial_records.all_trials(study)
    errors: list[str] = []
    entries: list[QueueEntry] = []
    for number in dict.fromkeys(numbers):
        try:
            entries.append(_repeat(trials, number))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError(f"study {study.study_name!r}: {join_errors(errors)}")
    return TrialLeases(study).enqueue(entries)


def enqueue_file(study: optuna.Study, spec: StudySpec, path: Path) -> list[int]:
    """Queue the configurations of a file, all or none; return the numbers of the new trials."""
    return TrialLeases(study).enqueue(read_entries(path, spec))


def count_free_trials(study: optuna.Study) -> int:
    """Return how many trials the budget allows beyond the queue; negative if it is too small."""
    trials = trial_records.all_trials(study)
    counts = trial_records.count_by_state(trials)
    budget: int = study.user_attrs[StudyAttr.SPEC]["budget"]["trials"]
    return budget - trial_records.count_finished(trials) - counts["running"] - counts["waiting"]


def _repeat(trials: Sequence[FrozenTrial], number: int) -> QueueEntry:
    if not 0 <= number < len(trials):
        existing = f"the trials are 0 to {len(trials) - 1}" if trials else "the study has none"
        raise InputError(f"no trial {number}: {existing}")
    trial = trials[number]
    if not trial.state.is_finished():
        state = trial_records.state_of(trial)
        raise InputError(f"trial {number} is {state}: only finished trials can be queued again")
    attrs = trial.user_attrs
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    if not params and TrialAttr.FIXED_CONFIG not in attrs and TrialAttr.CONFIG not in attrs:
        raise InputError(f"trial {number} ended before it had a configuration")
    kept = {k: attrs[k] for k in (TrialAttr.BASELINE, TrialAttr.FIXED_CONFIG) if k in attrs}
    return params, {**kept, TrialAttr.ALLOW_DUPLICATE: True, TrialAttr.REPEAT_OF: number}


def read_entries(path: Path, spec: StudySpec) -> list[QueueEntry]:
    """Read the configurations of a file; raises InputError with all of its errors."""
    plain = yaml_loader.load_file(path)
    items = plain if isinstance(plain, list) else [plain]
    if not items or plain is None:
        raise InputError(f"{path}: contains no configuration")
    errors: list[str] = []
    entries: list[QueueEntry] = []
    for i, item in enumerate(items, 1):
        try:
            entry, item_errors = _parse_item(item, spec)
        except InputError as error:
            item_errors = [str(error)]
        else:
            entries.append(entry)
        errors += [f"entry {i}: {e}" if len(items) > 1 else e for e in item_errors]
    if errors:
        raise InputError(f"{path}: {join_errors(errors)}")
    return entries


def _parse_item(item: Any, spec: StudySpec) -> tuple[QueueEntry, list[str]]:
    """Return an entry and its errors; raises InputError if there can be no others."""
    if not isinstance(item, Mapping) or not item:
        raise InputError(f"must be keys and values such as {{loss: dice}}, got {item!r:.60}")
    kind = next((key for key in ("baseline", "config") if key in item), None)
    if kind is None:
        point, errors = find_point(flatten_config(item), spec.space)
        return (point, {}), errors
    if len(item) > 1:
        raise InputError(f"{kind}: must be the only key, got {', '.join(map(str, item))}")
    try:
        if kind == "baseline":
            config = baselines.build_config(str(item[kind]), **spec.run_settings)
            attrs = {TrialAttr.BASELINE: item[kind]}
        else:
            config, attrs = _parse_config(item[kind], spec), {}
    except InputError as error:
        raise InputError(f"{kind}: {error}") from None
    models = {config.model.name: config.model.params}
    errors = [
        error
        for key, size in spec.image_sizes.items()
        for error in find_size_errors(models, size, key=key)
    ]
    return queue_entry(config, spec.space, attrs), errors


def _parse_config(plain: Any, spec: StudySpec) -> TrialConfig:
    """Parse a complete configuration; the settings of the run may be left out."""
    if not isinstance(plain, Mapping):
        raise InputError(f"must be keys and values, got {plain!r:.60}")
    size, epochs = spec.data.image_size, spec.budget.epochs
    full = spec.run_settings | dict(plain)
    TrialConfig.from_dict(full)  # reports unknown keys before missing ones
    missing = [key for key in (*DEFAULT_COMPONENTS, *SETTINGS) if key not in full]
    if missing:
        raise InputError(f"lacks {', '.join(missing)}; without 'config:' they are sampled")
    config = baselines.resolve_config(full)
    if config.image_size != size:
        raise InputError(f"image_size: the study's images have {size}, got {config.image_size}")
    if config.epochs > epochs:
        raise InputError(f"epochs: at most the study's {epochs}, got {config.epochs}")
    return config


def first_trials(spec: StudySpec) -> list[QueueEntry]:
    """Return parameters and user attributes of the trials that ``warm_start`` names."""
    entries = []
    for name in spec.warm_start_names:
        if name == DEFAULTS:
            entries.append(queue_entry(spec.space.default_config(), spec.space, {}))
        else:
            config = baselines.build_config(name, **spec.run_settings)
            entries.append(queue_entry(config, spec.space, {TrialAttr.BASELINE: name}))
    return entries


def queue_entry(config: TrialConfig, space: SearchSpace, attrs: Mapping[str, Any]) -> QueueEntry:
    """Return a queue entry for a configuration.

    A configuration within the search space is queued by its parameters, so that the sampler learns
    from it. Any other is queued as a fixed configuration: it is trained and ranked like any trial,
    but the sampler ignores it. Weights that are ``auto`` are replaced by the study's.
    """
    point, errors = find_point(flatten_config(config.to_dict()), space)
    if errors or not point:
        fixed = replace_auto(config, space.encoder_weights)
        return {}, {**attrs, TrialAttr.FIXED_CONFIG: fixed.to_dict()}
    return point, attrs


def flatten_config(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Flatten a configuration: ``{"loss": "focal", "loss.focal.gamma": 2.0, "batch_size": 8}``.

    Raises:
        InputError: If a family has neither an option nor ``{option: parameters}``.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key not in DEFAULT_COMPONENTS:
            flat[str(key)] = value
            continue
        option = {value: None} if isinstance(value, str) else value
        if not isinstance(option, Mapping) or len(option) != 1:
            raise InputError(
                f"{key}: must be one option or {{option: parameters}}, got {value!r:.60}"
            )
        ((name, params),) = option.items()
        if not isinstance(params, Mapping | None):
            raise InputError(f"{key}.{name}: must be {{parameter: value}}, got {params!r:.60}")
        flat[key] = name
        flat |= {f"{key}.{name}.{param}": inner for param, inner in (params or {}).items()}
    return flat


def find_point(
    flat_config: Mapping[str, Any], space: SearchSpace
) -> tuple[dict[str, Scalar], list[str]]:
    """Find the trial parameters with which ``suggest`` returns these values.

    Returns:
        The open parameters, and an error for each value outside the space.
    """
    params = _flatten_space(space)
    weights = _weights_for_auto(flat_config, space)
    point: dict[str, Scalar] = {}
    errors: list[str] = []
    for key, value in flat_config.items():
        if key not in params:
            section = key.rpartition(".")[0]
            names = [name for name in params if name.rpartition(".")[0] == section]
            hint = suggest_name(key, names) if names else f"{section} has no parameters"
            errors.append(f"{key}: unknown key ({hint})")
            continue
        param = params[key]
        if not isinstance(param, Domain):
            if value not in (param, weights.get(key)):
                errors.append(f"{key}: is {format_value(param)} in this study, got {value!r}")
            continue
        try:
            checked = param.check(value)
        except InputError as error:
            errors.append(f"{key}: {error}")
            continue
        if len(set(param.extremes())) > 1:
            point[key] = checked
    return point, errors


def _weights_for_auto(flat_config: Mapping[str, Any], space: SearchSpace) -> dict[str, str]:
    """Return the weights that ``auto`` stands for in a configuration, by the parameter's key."""
    model, weights = f"model.{flat_config.get('model')}", space.encoder_weights
    if _flatten_space(space).get(f"{model}.weights") != "auto":
        return {}
    encoder = flat_config.get(f"{model}.encoder")
    return {f"{model}.weights": "none" if weights is None else weights.get(str(encoder), "")}


def _flatten_space(space: SearchSpace) -> dict[str, Param]:
    # Settings that a study neither fixes nor searches keep their default.
    flat = {name: domain.default for name, domain in SETTINGS.items()} | dict(space.settings)
    for family, options in space.families.items():
        flat[family] = Categorical(tuple(options), next(iter(options)))
        for name, params in options.items():
            flat |= {f"{family}.{name}.{key}": param for key, param in params.items()}
    return flat
