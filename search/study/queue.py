"""Trials that people put into a study's queue: again, or as they wrote them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError, nearest
from lesionseg.registry import FAMILIES
from lesionseg.space import Domain, Scalar, format_value, lookup
from search.spec import baselines, yaml_loader
from search.spec.search_space import Param, Params, find_size_errors
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.study.warm_start import baseline_config, find_params, is_open

#: What the leases queues: parameters under the names of ``search.study.suggest``, and user attributes.
Queued = tuple[dict[str, Any], dict[str, Any]]


def retry(study: optuna.Study, numbers: Sequence[int]) -> list[int]:
    """Queues finished trials once more, all or none; their new numbers.

    Each gets the parameters, or the given configuration, of the trial that it repeats, whose
    number is its user attribute ``trials.RETRIES``. A number that is named twice is queued once.
    Raises InputError with all that is wrong: no such trial, one that waits or is at work, one that
    ended before it had any parameter.
    """
    known = trial_records.all_trials(study)
    errors: list[str] = []
    queue: list[Queued] = []
    for number in dict.fromkeys(numbers):
        try:
            queue.append(_again(_known(known, number)))
        except InputError as error:
            errors.append(str(error))
    _refuse(f"study {study.study_name!r}", errors)
    return TrialLeases(study).enqueue(queue)


def enqueue(study: optuna.Study, spec: StudySpec, path: Path) -> list[int]:
    """Queues the configurations that a YAML file holds, one or a list of them; their numbers.

    Each is one of:

        {model: {unet: {width: 32}}, loss: dice, batch_size: 8}    what is left out is drawn
        {baseline: unet-dice}                                        a published system
        {config: {...}}                                            complete, as a trial's is

    The first is a point of the study's space. The others may lie outside of it: they are trained
    and ranked like any trial then, and the sampler knows nothing of them.
    Raises InputError with all errors of the file, nothing having been queued.
    """
    entries = _entries(path)
    errors: list[str] = []
    queue: list[Queued] = []
    for i, entry in enumerate(entries, 1):
        found: list[str] = []
        queue.append(_entry(entry, spec, found))
        errors += [f"entry {i}: {e}" if len(entries) > 1 else e for e in found]
    _refuse(str(path), errors)
    return TrialLeases(study).enqueue(queue)


def room(study: optuna.Study) -> int:
    """How many trials the budget leaves once the queue is done.

    Negative: so many of the queue wait for a larger ``budget.trials``.
    """
    known = trial_records.all_trials(study)
    counts = trial_records.count_by_state(known)
    budget: int = study.user_attrs["spec"]["budget"]["trials"]
    return budget - trial_records.count_finished(known) - counts["running"] - counts["waiting"]


def _refuse(where: str, errors: Sequence[str]) -> None:
    if len(errors) > 1:
        errors = [f"({i}) {e}" for i, e in enumerate(errors, 1)]
    if errors:
        raise InputError(f"{where}: {'; '.join(errors)}")


# --- once more -----------------------------------------------------------------------------------


def _known(known: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    if 0 <= number < len(known):
        return known[number]
    there = f"there are 0 to {len(known) - 1}" if known else "there is none yet"
    raise InputError(f"no trial {number}: {there}")


def _again(trial: FrozenTrial) -> Queued:
    number, state, attrs = trial.number, trial_records.state_of(trial), trial.user_attrs
    if not trial.state.is_finished():
        raise InputError(f"trial {number} is {state}: only one that has ended can be queued again")
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    if not params and trial_records.TrialAttr.FIXED_CONFIG not in attrs and "config" not in attrs:
        raise InputError(f"trial {number} ended before it had a configuration: nothing to repeat")
    kept = {
        key: attrs[key]
        for key in (trial_records.TrialAttr.BASELINE, trial_records.TrialAttr.FIXED_CONFIG)
        if key in attrs
    }
    return params, kept | {
        trial_records.TrialAttr.ALLOW_DUPLICATE: True,
        trial_records.TrialAttr.REPEAT_OF: number,
    }


# --- as they are written -------------------------------------------------------------------------


def _entries(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    try:
        plain = yaml_loader.value(text)
    except yaml.YAMLError:
        plain = yaml_loader.parse(path, text)  # which says where
    entries = plain if isinstance(plain, list) else [plain]
    if not entries or plain is None:
        raise InputError(f"{path}: holds no configuration")
    return entries


def _entry(entry: Any, spec: StudySpec, errors: list[str]) -> Queued:
    if not isinstance(entry, Mapping) or not entry:
        errors.append(f"must be keys and values such as {{loss: dice}}, got {entry!r:.60}")
        return {}, {}
    whole = [key for key in ("baseline", "config") if key in entry]
    if not whole:
        return _point(entry, spec, errors), {}
    if len(entry) > 1:
        errors.append(f"{whole[0]}: takes no other key beside it, got {', '.join(map(str, entry))}")
        return {}, {}
    said: dict[str, Any] = (
        {trial_records.TrialAttr.BASELINE: entry["baseline"]} if whole == ["baseline"] else {}
    )
    make = _of_baseline if said else _of_config
    try:
        config = make(entry[whole[0]], spec)
    except InputError as error:
        errors.append(f"{whole[0]}: {error}")
        return {}, {}
    errors += find_size_errors({config.model.name: config.model.params}, config.image_size)
    params = find_params(config, spec.space)
    return (
        (params, said)
        if params
        else ({}, said | {trial_records.TrialAttr.FIXED_CONFIG: config.to_dict()})
    )


def _of_baseline(name: Any, spec: StudySpec) -> TrialConfig:
    return baseline_config(str(name), spec)


def _of_config(plain: Any, spec: StudySpec) -> TrialConfig:
    """A configuration with every parameter, checked; what belongs to the run is the study's."""
    if not isinstance(plain, Mapping):
        raise InputError(f"must be keys and values, got {plain!r:.60}")
    size, budget = spec.data.image_size, spec.budget
    run = {"image_size": size, "epochs": budget.epochs, "patience": budget.patience}
    whole = run | {"seed": spec.seed} | dict(plain)
    TrialConfig.from_dict(whole)  # an unknown key is told before one that is missing
    missing = [key for key in (*DEFAULTS, *SETTINGS) if key not in whole]
    if missing:
        raise InputError(
            f"lacks {', '.join(missing)}; a point of the study's space, the rest of it drawn, is "
            f"written without 'config:'"
        )
    for family, table in FAMILIES.items():
        component = baselines.get_component(TrialConfig.from_dict(whole).to_dict(), family)
        try:
            whole[family] = {
                component.name: lookup(family, table, component.name).resolve(component.params)
            }
        except InputError as error:
            raise InputError(f"{family}.{component.name}: {error}") from None
    config = TrialConfig.from_dict(whole)
    if config.image_size != size:
        raise InputError(f"image_size: the study's images have {size}, got {config.image_size}")
    if config.epochs > budget.epochs:
        raise InputError(f"epochs: at most the study's {budget.epochs}, got {config.epochs}")
    return config


def _point(entry: Mapping[Any, Any], spec: StudySpec, errors: list[str]) -> dict[str, Scalar]:
    """What an entry settles of the study's space, under the names of ``search.study.suggest``."""
    fixed: dict[str, Scalar] = {}
    for key, wanted in entry.items():
        if key in DEFAULTS:
            _family(key, wanted, spec.space.families[key], fixed, errors)
        elif key in SETTINGS:
            param = spec.space.settings.get(key, SETTINGS[key].default)
            _settle(key, param, SETTINGS[key], wanted, fixed, errors)
        else:
            known = ["baseline", "config", *DEFAULTS, *SETTINGS]
            errors.append(f"{key}: unknown key ({nearest(key, known)})")
    return fixed


def _family(
    family: str,
    wanted: Any,
    options: Mapping[str, Params],
    fixed: dict[str, Scalar],
    errors: list[str],
) -> None:
    if isinstance(wanted, str):
        wanted = {wanted: None}
    if not isinstance(wanted, Mapping) or len(wanted) != 1:
        errors.append(f"{family}: must be one option or {{option: parameters}}, got {wanted!r:.60}")
        return
    ((name, params),) = wanted.items()
    if name not in options:
        errors.append(f"{family}: {name!r} is not in this study ({nearest(name, options)})")
        return
    if len(options) > 1:
        fixed[family] = name
    if params is not None and not isinstance(params, Mapping):
        errors.append(f"{family}.{name}: must be {{parameter: value}}, got {params!r:.60}")
        return
    for key, value in (params or {}).items():
        if key not in options[name]:
            known = nearest(key, options[name]) if options[name] else "it has none"
            errors.append(f"{family}.{name}: unknown parameter {key!r} ({known})")
            continue
        domain = FAMILIES[family][name].space[key]
        _settle(f"{family}.{name}.{key}", options[name][key], domain, value, fixed, errors)


def _settle(
    where: str,
    param: Param,
    domain: Domain,
    wanted: Any,
    fixed: dict[str, Scalar],
    errors: list[str],
) -> None:
    try:
        value = (param if isinstance(param, Domain) else domain).check(wanted)
    except InputError as error:
        errors.append(f"{where}: {error}")
        return
    if isinstance(param, Domain):
        if is_open(param):
            fixed[where] = value
    elif value != param:
        errors.append(f"{where}: stands at {format_value(param)} in this study, got {wanted!r}")
