"""SearchSpace: the open and the fixed parameters of a study, checked against the tables.

A study names options of a family and may narrow their ranges. A range wider than the table's is an
error.

    model: unet                                   one option with its whole ranges
    model: [unet, segnet]                         several options
    model: all                                    all options of the table
    model: {unet: {width: [16, 64], depth: 4}}    a narrower range; a value
    model: {unet: {dropout: {choices: [0, 0.2]}}} some values of a range
    model: {unet: all}                            all parameters, including those fixed by default

Parameters in ``RegistryEntry.fixed_by_default`` keep their default unless a study names them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError, suggest_name
from lesionseg.registry import FAMILIES
from lesionseg.space import (
    Categorical,
    ComponentConfig,
    Domain,
    Float,
    Int,
    RegistryEntry,
    Scalar,
    lookup,
)

#: A parameter is open (a domain) or fixed (a value).
Param = Domain | Scalar
Params = Mapping[str, Param]

#: Settings that a study sets in another section.
_SECTIONS = {"image_size": "data", "epochs": "budget", "patience": "budget"}


@dataclass(frozen=True)
class SearchSpace:
    """The configurations that a study may try.

    families: parameters by family and option.
    settings: numbers of a TrialConfig that belong to no family.
    encoder_weights: source of the weights by encoder, in place of ``auto``; see StudySpec.
    """

    families: Mapping[str, Mapping[str, Params]]
    settings: Params
    encoder_weights: Mapping[str, str] | None = None

    def size(self) -> float:
        """Return the number of configurations; infinity if a range of real numbers is open."""
        sizes = [sum(map(_count_all, options.values())) for options in self.families.values()]
        return math.prod(sizes) * _count_all(self.settings)

    def is_finite(self) -> bool:
        """Return whether a grid can list all configurations."""
        return self.size() < math.inf

    def default_config(self) -> TrialConfig:
        """Return the first option of each family, with the default of each parameter."""
        components: dict[str, Any] = {}
        for family, options in self.families.items():
            name, params = next(iter(options.items()))
            components[family] = ComponentConfig(name, _defaults(params))
        return TrialConfig(**components, **_defaults(self.settings))  # type: ignore[arg-type]

    def auto_encoders(self) -> list[str]:
        """Return the encoders that a trial may have with the weights ``auto``."""
        encoders = (
            str(encoder)
            for params in self.families["model"].values()
            if "auto" in possible_values(params.get("weights", "none"))
            for encoder in possible_values(params["encoder"])
        )
        return list(dict.fromkeys(encoders))


def parse_space(
    search: Mapping[str, object],
    fixed: Mapping[str, object],
    settings: Mapping[str, Scalar],
) -> tuple[SearchSpace, list[str]]:
    """Parse the sections ``search`` and ``fixed`` of a study.

    Args:
        search: Families with their options, and settings with their ranges.
        fixed: Settings with one value.
        settings: Settings from other sections, which ``search`` and ``fixed`` must not repeat.

    Returns:
        The space, and all errors, each with its key.
    """
    parser = _SpaceParser(settings)
    for key, value in search.items():
        if key in FAMILIES:
            parser.parse_family(key, value)
        else:
            parser.parse_setting("search", key, value)
    for key, value in fixed.items():
        if isinstance(value, list | Mapping):
            parser.errors.append(
                f"fixed.{key}: must be one value, got {value!r}; ranges belong under search"
            )
        elif key in search:
            parser.errors.append(f"fixed.{key}: is under search too; keep one of them")
        else:
            parser.parse_setting("fixed", key, value)
    return parser.finish()


def possible_values(param: Param) -> tuple[Scalar, ...]:
    """Return the values of a parameter; of a range, its ends."""
    return param.extremes() if isinstance(param, Domain) else (param,)


def _defaults(params: Params) -> dict[str, Scalar]:
    return {k: p.default if isinstance(p, Domain) else p for k, p in params.items()}


class _SpaceParser:
    def __init__(self, reserved: Mapping[str, Scalar]) -> None:
        self.reserved = reserved
        self.settings: dict[str, Param] = dict(reserved)
        self.families: dict[str, Mapping[str, Params]] = {}
        self.errors: list[str] = []

    def parse_setting(self, section: str, key: str, value: object) -> None:
        where = f"{section}.{key}"
        if key in self.reserved:
            owner = f"under {_SECTIONS[key]}" if key in _SECTIONS else "to the top level"
            self.errors.append(f"{where}: belongs {owner}")
        elif key not in SETTINGS:
            names = [*SETTINGS, *(FAMILIES if section == "search" else ())]
            self.errors.append(f"{where}: unknown key ({suggest_name(key, names)})")
        else:
            self._narrow(section, key, SETTINGS[key], value, self.settings)

    def parse_family(self, family: str, value: object) -> None:
        table, where = FAMILIES[family], f"search.{family}"
        if value == "all":
            value = list(table)
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            if len(set(map(str, value))) < len(value):
                self.errors.append(f"{where}: names an option twice: {value!r}")
            value = {str(name): {} for name in value}
        options: dict[str, Params] = {}
        if isinstance(value, Mapping) and value:
            for name, params in value.items():
                try:
                    entry = lookup(family, table, str(name))
                except InputError as error:
                    self.errors.append(f"{where}: {error}")
                else:
                    options[str(name)] = self._parse_params(f"{where}.{name}", entry, params)
        else:
            names = ", ".join(table)
            self.errors.append(f"{where}: must name at least one option ({names}), got {value!r}")
        self.families[family] = options

    def finish(self) -> tuple[SearchSpace, list[str]]:
        for family, default in DEFAULT_COMPONENTS.items():
            self.families.setdefault(family, {default: FAMILIES[family][default].resolve({})})
        # The stride of a model follows from its parameters, so these must be valid.
        if not any(error.startswith("search.model") for error in self.errors):
            size = self.settings["image_size"]
            self.errors += find_size_errors(self.families["model"], size)
        return SearchSpace(self.families, self.settings), self.errors

    def _parse_params(self, where: str, entry: RegistryEntry, value: object) -> Params:
        params: dict[str, Param] = dict(entry.space)
        if value == "all":
            return params
        params |= {name: entry.space[name].default for name in entry.fixed_by_default}
        if value is None:
            return params
        if not isinstance(value, Mapping):
            self.errors.append(f"{where}: must be {{parameter: value or range}}, got {value!r}")
            return params
        for key, inner in value.items():
            if key not in entry.space:
                names = suggest_name(key, entry.space) if entry.space else "it has none"
                self.errors.append(f"{where}: unknown parameter {key!r} ({names})")
            else:
                self._narrow(where, key, entry.space[key], inner, params)
        return params

    def _narrow(
        self, where: str, key: str, domain: Domain, value: object, params: dict[str, Param]
    ) -> None:
        try:
            params[key] = _narrow_domain(domain, value)
        except InputError as error:
            self.errors.append(f"{where}.{key}: {error}")


def _narrow_domain(domain: Domain, value: object) -> Param:
    """Return a value, a part of the domain, or a choice of values from ``{choices: [...]}``."""
    if isinstance(value, Mapping):
        choices = value.get("choices")
        if set(value) != {"choices"} or not isinstance(choices, list) or not choices:
            raise InputError(
                f"must be a value, a range or {{choices: [value, ...]}}, got {value!r}"
            )
        checked = tuple(domain.check(choice) for choice in choices)
        if len(set(checked)) < len(checked):
            raise InputError(f"names a choice twice: {choices!r}")
        return Categorical(checked, checked[0])
    return domain.narrow(value) if isinstance(value, list) else domain.check(value)


def _count_all(params: Params) -> float:
    return math.prod(map(_count, params.values()))


def _count(param: Param) -> float:
    match param:
        case Float(low, high):
            return 1 if low == high else math.inf
        case Int(low, high, step=step):
            return (high - low) // step + 1
        case Categorical(choices):
            return len(choices)
        case _:
            return 1


def find_size_errors(
    models: Mapping[str, Params], size: Param, owner: str = "", key: str = "data.image_size"
) -> list[str]:
    """Return an error for each model that does not accept the image size.

    Args:
        models: Parameters by the model's name; every combination of their ends is checked.
        size: Side of the images in pixels.
        owner: Name of the baseline that the models belong to; empty for the study's own space.
        key: Key of the image size in the study file.
    """
    errors = []
    for name, params in models.items():
        entry = FAMILIES["model"][name]
        defaults = {key: domain.default for key, domain in entry.space.items()}
        all_params: dict[str, Param] = defaults | dict(params)
        corners = itertools.product(*map(possible_values, all_params.values()))
        stride = max(entry.stride(**dict(zip(all_params, c, strict=True))) for c in corners)
        assert isinstance(size, int)
        smallest = max(stride, entry.min_image_size)
        if size % stride or size < smallest:
            below = size // stride * stride
            valid = [s for s in (below, below + stride) if s >= smallest]
            valid = valid or [-(-smallest // stride) * stride]
            errors.append(
                f"{key}: {f'{owner}: ' if owner else ''}{name} takes multiples of "
                f"{stride} from {smallest} on, got {size}; "
                f"the nearest is {min(valid, key=lambda s: abs(s - size))}"
            )
    return errors
