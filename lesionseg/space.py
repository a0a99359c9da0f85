"""Search domains, registry entries, and the components built from them.

A family (models, losses, ...) is one ``dict[str, RegistryEntry]``. The search, the contract tests,
``lesionsearch options`` and the docs iterate the same dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from lesionseg.errors import InputError, suggest_name

Scalar = bool | int | float | str


@dataclass(frozen=True)
class _Range:
    """Numbers in ``[low, high]``, sampled on a logarithmic scale if ``log`` is set."""

    low: Any
    high: Any
    default: Any
    log: bool = False

    def check(self, value: object) -> Any:
        """Return the value as a number; raises InputError if it is not in the domain."""
        number = _to_number(value)
        if not self.low <= number <= self.high:
            raise InputError(f"must lie in [{self.low:g}, {self.high:g}], got {number:.12g}")
        return number

    def narrow(self, bounds: object) -> Self:
        """Return the domain limited to ``[low, high]``.

        Raises:
            InputError: ``bounds`` are not two ordered values of this domain.
        """
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise InputError(f"must be a value or [low, high], got {bounds!r}")
        low, high = map(self.check, bounds)
        if low > high:
            raise InputError(f"must have low <= high, got [{low:g}, {high:g}]")
        return replace(self, low=low, high=high, default=min(max(self.default, low), high))

    def extremes(self) -> tuple[Any, ...]:
        """Return the lowest and the highest value."""
        return (self.low, self.high)


class Float(_Range):
    """Real numbers."""

    low: float
    high: float
    default: float

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Int(_Range):
    """Integers, ``step`` apart."""

    low: int
    high: int
    default: int
    step: int = 1

    def check(self, value: object) -> int:
        number = _to_number(value)
        if number != int(number):
            raise InputError(f"must be a whole number, got {value!r}")
        if not self.low <= number <= self.high:
            raise InputError(f"must lie in [{self.low}, {self.high}], got {int(number)}")
        if (int(number) - self.low) % self.step:
            raise InputError(f"must be {self.low} plus a multiple of {self.step}, got {value!r}")
        return int(number)

    def __str__(self) -> str:
        step = f" step {self.step}" if self.step > 1 else ""
        return f"{self.low} .. {self.high}{step}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Categorical:
    """One of ``choices``; if ``files`` is set, also a file path (a string with a ``/``)."""

    choices: tuple[Scalar, ...]
    default: Scalar
    files: bool = False

    def check(self, value: object) -> Scalar:
        """Return the value; raises InputError if it is not in the domain."""
        for choice in self.choices:
            if type(choice) is type(value) and choice == value:
                return choice
        if self.files and isinstance(value, str) and "/" in value:
            return value
        hint = suggest_name(value, [str(c) for c in self.choices])
        raise InputError(f"must be one of its choices, got {value!r} ({hint})")

    def narrow(self, choices: object) -> Categorical:
        """Return the domain limited to a list of its choices.

        Raises:
            InputError: the list is empty, or a choice is unknown or listed twice.
        """
        if not isinstance(choices, list) or not choices:
            raise InputError(f"must be a value or a list of values, got {choices!r}")
        checked = tuple(self.check(v) for v in choices)
        if len(set(checked)) < len(checked):
            raise InputError(f"names a choice twice: {choices!r}")
        default = self.default if self.default in checked else checked[0]
        return Categorical(checked, default, self.files)

    def extremes(self) -> tuple[Scalar, ...]:
        """Return all choices."""
        return self.choices

    def __str__(self) -> str:
        texts = [format_value(choice) for choice in self.choices]
        return " | ".join([*texts, "a file's path"] if self.files else texts)


Domain = Float | Int | Categorical


def format_value(value: Scalar) -> str:
    """Format a value as in a study file."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class RegistryEntry:
    """One row of a family's table.

    Attributes:
        build: returns the component, given the family's leading arguments and the parameters.
        space: the domain of each parameter.
        description: one line for help and docs.
        stride: for models, the number that the image size must be a multiple of, as a function
            of the parameters.
        min_image_size: for models, in pixels.
        needs_image_size: whether ``build`` takes ``image_size`` as well.
        fixed_by_default: parameters that keep their default unless a study names them, because
            they are expensive, need extra packages or files, or duplicate another parameter.
    """

    build: Callable[..., Any]
    space: Mapping[str, Domain] = field(default_factory=dict)
    description: str = ""
    stride: Callable[..., int] = lambda **_: 1
    min_image_size: int = 1
    needs_image_size: bool = False
    fixed_by_default: frozenset[str] = frozenset()

    def resolve(self, params: Mapping[str, object]) -> dict[str, Scalar]:
        """Return all parameters: the given ones, checked, and defaults for the others.

        Raises:
            InputError: a parameter is unknown or its value lies outside its domain.
        """
        for name in params:
            if name not in self.space:
                raise InputError(f"unknown parameter {name!r} ({suggest_name(name, self.space)})")
        resolved: dict[str, Scalar] = {}
        for name, domain in self.space.items():
            try:
                resolved[name] = domain.check(params[name]) if name in params else domain.default
            except InputError as error:
                raise InputError(f"{name} {error}") from None
        return resolved


@dataclass(frozen=True)
class ComponentConfig:
    """The name of a registry entry and the values of its parameters."""

    name: str
    params: Mapping[str, Scalar] = field(default_factory=dict)


def lookup(family: str, table: Mapping[str, RegistryEntry], name: str) -> RegistryEntry:
    """Return the entry of a name; raises InputError with the closest match if there is none."""
    if name not in table:
        raise InputError(f"unknown {family} {name!r} ({suggest_name(name, table)})")
    return table[name]


def resolve(
    family: str, table: Mapping[str, RegistryEntry], component: ComponentConfig
) -> dict[str, Scalar]:
    """Return all parameters of a component; an InputError names the family and the entry."""
    entry = lookup(family, table, component.name)
    try:
        return entry.resolve(component.params)
    except InputError as error:
        raise InputError(f"{family}.{component.name}: {error}") from None


def build(
    family: str,
    table: Mapping[str, RegistryEntry],
    component: ComponentConfig,
    *args: Any,
    image_size: int | None = None,
) -> Any:
    """Build a component; ``args`` are the leading arguments of all entries of the family.

    Raises:
        InputError: the entry or a parameter is unknown, a value lies outside its domain, or the
            parameters cannot be combined.
    """
    params = resolve(family, table, component)
    entry = table[component.name]
    sizes = {"image_size": image_size} if entry.needs_image_size else {}
    return entry.build(*args, **params, **sizes)


def _to_number(value: object) -> float:
    # YAML reads 1e-4 as a string. A bool is an int in Python, but not a number in a study file.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"must be a number, got {value!r}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise InputError(f"must be finite, got {value!r}")
    return number
