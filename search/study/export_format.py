"""The file format of exported studies: JSON lines.

The first line is a ``StudyLine``, each further line a ``TrialLine``, ordered by number. JSON has no
NaN and no infinity: they are written as ``{"$float": "nan"}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
)

from lesionseg.errors import InputError
from search.storage.optuna_internals import models, validate_trial

#: Version of the format; it grows when older programs cannot read the file.
FORMAT = "lesionsearch-study/1"

_FLOAT_KEY = "$float"


def _check_key(key: str) -> str:
    if not 0 < len(key) <= models.MAX_INDEXED_STRING_LENGTH or not key.isprintable():
        raise ValueError(f"not a name that a database accepts: {key!r:.60}")
    return key


def _parse_distribution(plain: dict[str, Any]) -> BaseDistribution:
    try:
        choices = plain["attributes"].get("choices", [])
        if not all(isinstance(choice, None | bool | int | float | str) for choice in choices):
            raise ValueError("choices must be numbers, texts, booleans or null")
        return json_to_distribution(json.dumps(plain))
    except (AttributeError, KeyError, TypeError) as error:  # a field is missing or unknown
        raise ValueError(f"not a distribution: {error}") from None


Attrs = dict[Annotated[str, AfterValidator(_check_key)], Any]
#: Epochs as a database stores them.
Step = Annotated[int, Field(ge=-(2**31), lt=2**31)]
State = Annotated[
    Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"],
    AfterValidator(lambda name: TrialState[name]),
]
Distribution = Annotated[dict[str, Any], AfterValidator(_parse_distribution)]
#: Local time without a time zone, as Optuna has it.
LocalTime = Annotated[
    AwareDatetime, AfterValidator(lambda time: time.astimezone().replace(tzinfo=None))
]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StudyLine(_Line):
    """The first line: a study without its trials. exported: time of the export."""

    format: Literal["lesionsearch-study/1"]
    study: str
    direction: Literal["maximize"]
    trials: Annotated[StrictInt, Field(ge=0)]
    user_attrs: Attrs
    system_attrs: Attrs
    optuna: str
    lesionsearch: str
    exported: AwareDatetime


class TrialLine(_Line):
    """A trial: the fields of Optuna's ``FrozenTrial``."""

    number: StrictInt
    state: State
    value: StrictFloat | None
    params: Attrs
    distributions: dict[str, Distribution]
    user_attrs: Attrs
    system_attrs: Attrs
    intermediate_values: dict[Step, StrictFloat]
    datetime_start: LocalTime | None
    datetime_complete: LocalTime | None


def trial_fields(trial: FrozenTrial) -> dict[str, Any]:
    """Return the fields of a trial's line."""
    fields = {name: getattr(trial, name) for name in TrialLine.model_fields}
    return fields | {"state": trial.state.name}


def format_line(fields: Mapping[str, Any]) -> str:
    """Format the fields of a line."""
    return json.dumps(_encode_floats(fields), allow_nan=False, default=_encode) + "\n"


def read_lines(lines: Iterable[bytes], source: str) -> tuple[StudyLine, list[FrozenTrial]]:
    """Read and check an exported study.

    Args:
        lines: The lines of the file; empty ones are ignored.
        source: The file's name, for messages.

    Raises:
        InputError: For the first invalid line, with its number, and for missing lines.
    """
    numbered = [
        (f"{source}: line {number}", text) for number, text in enumerate(lines, 1) if text.strip()
    ]
    if not numbered:
        raise InputError(f"{source}: line 1: empty; this is not an exported study")
    study = _parse_line(StudyLine, *numbered[0])
    trials = [_parse_trial(number, *line) for number, line in enumerate(numbered[1:])]
    if len(trials) != study.trials:
        raise InputError(
            f"{numbered[-1][0]}: {len(trials)} of {study.trials} trials; the file is incomplete"
        )
    return study, trials


LineT = TypeVar("LineT", bound=_Line)


def _parse_line(model: type[LineT], where: str, text: bytes) -> LineT:
    """Parse a line; where: its place, for messages."""
    try:
        plain = json.loads(text, parse_constant=_reject_constant, object_hook=_decode_float)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON from column {error.colno} on") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "line"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {field}: {message}, got {first['input']!r:.60}") from None
    except (OverflowError, UnicodeEncodeError) as error:
        # a time that local time cannot express; half a pair of surrogates
        raise InputError(f"{where}: {error}") from None


def _parse_trial(number: int, where: str, text: bytes) -> FrozenTrial:
    line = _parse_line(TrialLine, where, text)
    if line.number != number:
        raise InputError(
            f"{where}: number: must be {number}, got {line.number}; "
            "a line is missing or in the wrong place"
        )
    try:
        trial = FrozenTrial(trial_id=number, **dict(line))
        validate_trial(trial)
        if trial.value is not None and (math.isnan(trial.value) or not trial.state.is_finished()):
            raise ValueError(f"{trial.state.name} cannot have the value {trial.value!r}")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # as Optuna raises them
        raise InputError(f"{where}: trial: {' '.join(str(error).split())}") from None
    return trial


def _encode(value: Any) -> Any:
    """Return a distribution or a time, which is local or has a time zone, as plain data."""
    if isinstance(value, BaseDistribution):
        return json.loads(distribution_to_json(value))
    return datetime.astimezone(value, timezone.utc).isoformat()


def _encode_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_KEY: str(value)}
    if isinstance(value, Mapping):
        return {key: _encode_floats(inner) for key, inner in value.items()}
    return [_encode_floats(inner) for inner in value] if isinstance(value, list | tuple) else value


def _decode_float(plain: dict[str, Any]) -> Any:
    if plain.keys() == {_FLOAT_KEY} and isinstance(plain[_FLOAT_KEY], str):
        return float(plain[_FLOAT_KEY])
    return plain


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
