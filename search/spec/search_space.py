"""SearchSpace: what a study file's ``search`` and ``fixed`` leave open, checked against the tables.

A study names options of a family and may narrow their ranges; it can never widen a row.

    model: unet                                   one option, its whole ranges
    model: [unet, segnet]                         several
    model: all                                    every row of the table
    model: {unet: {width: [16, 64], depth: 4}}    a narrower range; a value
    model: {unet: {dropout: {choices: [0, 0.2]}}} some values of a range
    model: {unet: all}                            the settled parameters too

Settled parameters (``Option.settled``) stay at their default unless a study names them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lesionseg.config import DEFAULTS, SETTINGS
from lesionseg.errors import InputError, nearest
from lesionseg.registry import FAMILIES
from lesionseg.space import Categorical, Domain, Float, Int, RegistryEntry, Scalar, lookup

#: A parameter is open (a domain) or settled (a value).
Param = Domain | Scalar
Params = Mapping[str, Param]


@dataclass(frozen=True)
class SearchSpace:
    """picks: family -> option -> parameter. settings: the plain numbers of a TrialConfig."""

    picks: Mapping[str, Mapping[str, Params]]
    settings: Params

    def size(self) -> float:
        """How many configurations it holds; infinity where a range of real numbers is open."""
        families = [sum(map(_product, options.values())) for options in self.picks.values()]
        return math.prod(families) * _product(self.settings)

    def is_finite(self) -> bool:
        """Whether it holds finitely many configurations, so that a grid can list them."""
        return self.size() < math.inf


def parse_space(
    search: Mapping[str, object],
    fixed: Mapping[str, object],
    settings: Mapping[str, Scalar],
) -> tuple[SearchSpace, list[str]]:
    """The space and every error found on the way, each naming its key.

    settings: what the study says elsewhere (image size, epochs, seed); not to be said twice.
    """
    errors: list[str] = []
    picks: dict[str, Mapping[str, Params]] = {}
    open_settings: dict[str, Param] = dict(settings)
    for key, wanted in search.items():
        if key in FAMILIES:
            picks[key] = _family(key, wanted, errors)
        else:
            _setting(f"search.{key}", key, wanted, settings, open_settings, errors)
    for key, wanted in fixed.items():
        if isinstance(wanted, list | Mapping):
            errors.append(f"fixed.{key}: must be one value, got {wanted!r}; ranges go to search")
        elif key in search:
            errors.append(f"fixed.{key}: stands under search too; keep one of them")
        else:
            _setting(f"fixed.{key}", key, wanted, settings, open_settings, errors)
    for family, default in DEFAULTS.items():
        picks.setdefault(family, {default: dict(_defaults(FAMILIES[family][default]))})
    # A model's stride is that of its parameters: it is not known where these are wrong.
    if not any(error.startswith("search.model") for error in errors):
        errors += refused_sizes(picks["model"], open_settings["image_size"])
    return SearchSpace(picks, open_settings), errors


def values(param: Param) -> tuple[Scalar, ...]:
    """What a parameter can be, by its extremes where it is a range."""
    return param.corners() if isinstance(param, Domain) else (param,)


def _setting(
    where: str,
    key: str,
    wanted: object,
    taken: Mapping[str, Scalar],
    into: dict[str, Param],
    errors: list[str],
) -> None:
    if key in taken:
        home = {"image_size": "data", "epochs": "budget", "patience": "budget"}.get(key)
        errors.append(f"{where}: belongs {f'under {home}' if home else 'to the top level'}")
    elif key not in SETTINGS:
        known = [*SETTINGS, *(FAMILIES if where.startswith("search") else ())]
        errors.append(f"{where}: unknown key ({nearest(key, known)})")
    else:
        _collect(where, SETTINGS[key], wanted, into, key, errors)


def _family(family: str, wanted: object, errors: list[str]) -> dict[str, Params]:
    table = FAMILIES[family]
    where = f"search.{family}"
    if wanted == "all":
        wanted = list(table)
    if isinstance(wanted, str):
        wanted = [wanted]
    if isinstance(wanted, list):
        if len(set(map(str, wanted))) < len(wanted):
            errors.append(f"{where}: names an option twice: {wanted!r}")
        wanted = {str(name): {} for name in wanted}
    if not isinstance(wanted, Mapping) or not wanted:
        errors.append(
            f"{where}: must name at least one option ({', '.join(table)}), got {wanted!r}"
        )
        return {}
    options: dict[str, Params] = {}
    for name, params in wanted.items():
        try:
            option = lookup(family, table, str(name))
        except InputError as error:
            errors.append(f"{where}: {error}")
            continue
        options[str(name)] = _params(f"{where}.{name}", option, params, errors)
    return options


def _params(where: str, option: RegistryEntry, wanted: object, errors: list[str]) -> Params:
    into: dict[str, Param] = dict(option.space)
    if wanted == "all":
        return into
    into |= {name: option.space[name].default for name in option.settled}
    if wanted is None:
        return into
    if not isinstance(wanted, Mapping):
        errors.append(f"{where}: must be {{parameter: value or range}}, got {wanted!r}")
        return into
    for key, value in wanted.items():
        if key not in option.space:
            known = nearest(key, option.space) if option.space else "it has none"
            errors.append(f"{where}: unknown parameter {key!r} ({known})")
        else:
            _collect(f"{where}.{key}", option.space[key], value, into, key, errors)
    return into


def _collect(
    where: str, domain: Domain, wanted: object, into: dict[str, Param], key: str, errors: list[str]
) -> None:
    try:
        into[key] = _narrowed(domain, wanted)
    except InputError as error:
        errors.append(f"{where}: {error}")


def _narrowed(domain: Domain, wanted: object) -> Param:
    """A value, a part of the domain, or ``{choices: [...]}``: some of its values."""
    if isinstance(wanted, Mapping):
        values = wanted.get("choices")
        if set(wanted) != {"choices"} or not isinstance(values, list) or not values:
            raise InputError(
                f"must be a value, a range or {{choices: [value, ...]}}, got {wanted!r}"
            )
        checked = tuple(domain.check(value) for value in values)
        if len(set(checked)) < len(checked):
            raise InputError(f"names a choice twice: {values!r}")
        return Categorical(checked, checked[0])
    return domain.narrow(wanted) if isinstance(wanted, list) else domain.check(wanted)


def _product(params: Params) -> float:
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


def _defaults(option: RegistryEntry) -> Iterator[tuple[str, Scalar]]:
    return ((name, domain.default) for name, domain in option.space.items())


def refused_sizes(models: Mapping[str, Params], size: Param, who: str = "") -> list[str]:
    """An error for each model that cannot take the image size with all of its parameters.

    who: what wants the models, where that is not the study's own space.
    """
    errors = []
    for name, params in models.items():
        option = FAMILIES["model"][name]
        whole = dict(_defaults(option)) | dict(params)
        corners = itertools.product(*map(values, whole.values()))
        stride = max(option.stride(**dict(zip(whole, c, strict=True))) for c in corners)
        assert isinstance(size, int)
        least = max(stride, option.smallest)
        if size % stride or size < least:
            lower = size // stride * stride
            takes = [s for s in (lower, lower + stride) if s >= least]
            takes = takes or [-(-least // stride) * stride]
            errors.append(
                f"data.image_size: {f'{who}: ' if who else ''}{name} takes multiples of {stride} "
                f"from {least} on, got {size}; "
                f"the nearest is {min(takes, key=lambda s: abs(s - size))}"
            )
    return errors
