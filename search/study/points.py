"""Points of a search space: parameters by the names of ``search.study.suggest``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS
from lesionseg.errors import InputError, suggest_name
from lesionseg.space import Categorical, Domain, Float, Int, Scalar, format_value
from search.spec.search_space import Param, SearchSpace


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
            if value != param:
                errors.append(f"{key}: is {format_value(param)} in this study, got {value!r}")
            continue
        try:
            checked = param.check(value)
        except InputError as error:
            errors.append(f"{key}: {error}")
            continue
        if _is_open(param):
            point[key] = checked
    return point, errors


def _flatten_space(space: SearchSpace) -> dict[str, Param]:
    # Settings that a study neither fixes nor searches keep their default.
    flat = {name: domain.default for name, domain in SETTINGS.items()} | dict(space.settings)
    for family, options in space.families.items():
        flat[family] = Categorical(tuple(options), next(iter(options)))
        for name, params in options.items():
            flat |= {f"{family}.{name}.{key}": param for key, param in params.items()}
    return flat


def _is_open(domain: Domain) -> bool:
    match domain:
        case Float(low, high) | Int(low, high):
            return low < high
        case Categorical(choices):
            return len(choices) > 1
