"""What can be searched: domains of values, the rows of a family's table, and a choice from it.

A family (models, losses, ...) is one ``dict[str, Option]``. A row is the registration: the
search, the contract tests, ``lesionsearch options`` and the docs all iterate the same table.
Nothing here knows of any search library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lesionseg.errors import InputError, nearest

Scalar = bool | int | float | str
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Float:
    """Real numbers in ``[low, high]``; ``log`` draws them evenly on a logarithmic scale."""

    low: float
    high: float
    default: float
    log: bool = False

    def check(self, value: object) -> float:
        """The value as a float; InputError if it is none or lies outside the range."""
        number = _number(value)
        if not self.low <= number <= self.high:
            raise InputError(f"must lie in [{self.low:g}, {self.high:g}], got {number:.12g}")
        return number

    def narrow(self, wanted: object) -> Float:
        """The part ``[low, high]`` of this range; InputError if it is not a part of it."""
        low, high = _bounds(wanted, self.check)
        return replace(self, low=low, high=high, default=min(max(self.default, low), high))

    def corners(self) -> tuple[float, ...]:
        """Its extreme values."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Int:
    """Whole numbers in ``[low, high]``, ``step`` apart, or evenly on a logarithmic scale."""

    low: int
    high: int
    default: int
    log: bool = False
    step: int = 1

    def check(self, value: object) -> int:
        """The value as an int; InputError if it is none, out of range or off the step."""
        number = _number(value)
        if number != int(number):
            raise InputError(f"must be a whole number, got {value!r}")
        if not self.low <= number <= self.high:
            raise InputError(f"must lie in [{self.low}, {self.high}], got {int(number)}")
        if (int(number) - self.low) % self.step:
            raise InputError(f"must be {self.low} plus a multiple of {self.step}, got {value!r}")
        return int(number)

    def narrow(self, wanted: object) -> Int:
        """The part ``[low, high]`` of this range; InputError if it is not a part of it."""
        low, high = _bounds(wanted, self.check)
        return replace(self, low=low, high=high, default=min(max(self.default, low), high))

    def corners(self) -> tuple[int, ...]:
        """Its extreme values."""
        return (self.low, self.high)

    def __str__(self) -> str:
        step = f" step {self.step}" if self.step > 1 else ""
        return f"{self.low} .. {self.high}{step}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Categorical:
    """One of some values; with ``files``, the path of a file as well (a word with a ``/``)."""

    choices: tuple[Scalar, ...]
    default: Scalar
    files: bool = False

    def check(self, value: object) -> Scalar:
        """The value itself; InputError if it is not one of the choices."""
        for choice in self.choices:
            if type(choice) is type(value) and choice == value:
                return choice
        if self.files and isinstance(value, str) and "/" in value:
            return value
        hint = nearest(value, [str(c) for c in self.choices])
        raise InputError(f"must be one of its choices, got {value!r} ({hint})")

    def narrow(self, wanted: object) -> Categorical:
        """These choices only; InputError if one is unknown, doubled or the list is empty."""
        if not isinstance(wanted, list) or not wanted:
            raise InputError(f"must be a value or a list of values, got {wanted!r}")
        chosen = tuple(self.check(v) for v in wanted)
        if len(set(chosen)) < len(chosen):
            raise InputError(f"names a choice twice: {wanted!r}")
        default = self.default if self.default in chosen else chosen[0]
        return Categorical(chosen, default, self.files)

    def corners(self) -> tuple[Scalar, ...]:
        """All of its values."""
        return self.choices

    def __str__(self) -> str:
        return " | ".join([*map(format_value, self.choices), *(["a file's path"] if self.files else [])])


Domain = Float | Int | Categorical


def format_value(value: Scalar) -> str:
    """A value as it is written in a study file."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class RegistryEntry:
    """One row of a family's table.

    build: makes the thing from its parameters (and the family's own leading arguments).
    space: the domain of each parameter that ``build`` takes.
    about: one line for people.
    stride: for models, the number that the image size must be a multiple of, given the
        parameters.
    smallest: for models, the smallest image size in pixels.
    sized: ``build`` takes ``image_size`` too, since the thing is planned from it.
    fixed_by_default: parameters that a study leaves at their default unless it names them: they cost much,
        need what not everybody has, or mean the same as another parameter.
    """

    build: Callable[..., Any]
    space: Mapping[str, Domain] = field(default_factory=dict)
    about: str = ""
    stride: Callable[..., int] = lambda **_: 1
    smallest: int = 1
    sized: bool = False
    fixed_by_default: frozenset[str] = frozenset()

    def resolve(self, params: Mapping[str, object]) -> dict[str, Scalar]:
        """Every parameter: those given, checked, and the defaults of the others."""
        for name in params:
            if name not in self.space:
                raise InputError(f"unknown parameter {name!r} ({nearest(name, self.space)})")
        checked: dict[str, Scalar] = {}
        for name, domain in self.space.items():
            try:
                checked[name] = domain.check(params[name]) if name in params else domain.default
            except InputError as error:
                raise InputError(f"{name} {error}") from None
        return checked


@dataclass(frozen=True)
class ComponentConfig:
    """One option of a family and the values of its parameters."""

    name: str
    params: Mapping[str, Scalar] = field(default_factory=dict)


def lookup(family: str, table: Mapping[str, RegistryEntry], name: str) -> RegistryEntry:
    """The row of that name; InputError with the nearest match if there is none."""
    if name not in table:
        raise InputError(f"unknown {family} {name!r} ({nearest(name, table)})")
    return table[name]


def build(
    family: str,
    table: Mapping[str, RegistryEntry],
    component: ComponentConfig,
    *args: Any,
    image_size: int | None = None,
) -> Any:
    """What the picked row builds from the family's own arguments and the picked parameters.

    image_size: handed on to rows that are planned from it (``Option.sized``).
    Raises InputError: no such row or parameter, a value outside its domain, or parameters that
    do not go together.
    """
    option = lookup(family, table, component.name)
    try:
        params = option.resolve(component.params)
    except InputError as error:
        raise InputError(f"{family}.{component.name}: {error}") from None
    planned = {"image_size": image_size} if option.sized else {}
    return option.build(*args, **params, **planned)


def _number(value: object) -> float:
    # YAML reads 1e-4 as a string; a bool is an int to Python but never a number to a person.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"must be a number, got {value!r}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise InputError(f"must be finite, got {value!r}")
    return number


def _bounds(wanted: object, check: Callable[[object], N]) -> tuple[N, N]:
    if not isinstance(wanted, list) or len(wanted) != 2:
        raise InputError(f"must be a value or [low, high], got {wanted!r}")
    low, high = check(wanted[0]), check(wanted[1])
    if low > high:
        raise InputError(f"is upside down: [{low:g}, {high:g}]")
    return low, high
