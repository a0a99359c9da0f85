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

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
)
from pydantic import StrictFloat as _StrictFloat

from lesionseg.errors import InputError
from search.storage.optuna_internals import models, validate_trial

#: Version of the format; it grows when older programs cannot read the file.
FORMAT = "lesionsearch-study/1"

_FLOAT_KEY = "$float"


def _check_key(key: str) -> str:
    if not 0 < len(key) <= models.MAX_INDEXED_STRING_LENGTH or not key.isprintable():
        raise ValueError(f"not a name that a database accepts: {key!r:.60}")
    return key


Name = Annotated[str, AfterValidator(_check_key)]
Attrs = dict[Name, Any]
Number = _StrictFloat | StrictInt  # without bool
#: Epochs as a database stores them.
Step = Annotated[int, Field(ge=-(2**31), lt=2**31)]


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
    """A trial."""

    number: StrictInt
    state: Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"]
    value: Number | None
    params: Attrs
    distributions: dict[str, dict[str, Any]]
    user_attrs: Attrs
    system_attrs: Attrs
    intermediate_values: dict[Step, Number]
    datetime_start: AwareDatetime | None
    datetime_complete: AwareDatetime | None

    def to_trial(self) -> FrozenTrial:
        """Convert to a trial; raises an exception of any kind if the fields contradict."""
        trial = FrozenTrial(
            number=self.number,
            trial_id=self.number,
            state=TrialState[self.state],
            params=self.params,
            user_attrs=self.user_attrs,
            system_attrs=self.system_attrs,
            value=None if self.value is None else float(self.value),
            distributions={
                name: json_to_distribution(json.dumps(plain))
                for name, plain in self.distributions.items()
            },
            intermediate_values={s: float(v) for s, v in self.intermediate_values.items()},
            datetime_start=_to_local_time(self.datetime_start),
            datetime_complete=_to_local_time(self.datetime_complete),
        )
        validate_trial(trial)
        if trial.value is not None and (math.isnan(trial.value) or not trial.state.is_finished()):
            raise ValueError(f"{self.state} cannot have the value {trial.value!r}")
        return trial


def format_line(plain: Mapping[str, Any]) -> str:
    """Format the fields of a line."""
    return json.dumps(_encode_floats(plain), allow_nan=False) + "\n"


def trial_fields(trial: FrozenTrial) -> dict[str, Any]:
    """Return the fields of a trial's line."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value,
        "params": trial.params,
        "distributions": {
            name: json.loads(distribution_to_json(distribution))
            for name, distribution in trial.distributions.items()
        },
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": dict(sorted(trial.intermediate_values.items())),
        "datetime_start": _to_utc(trial.datetime_start),
        "datetime_complete": _to_utc(trial.datetime_complete),
    }


def read_lines(lines: Iterable[str], source: str) -> tuple[StudyLine, list[FrozenTrial]]:
    """Read and check an exported study.

    Args:
        lines: The lines of the file; empty ones are ignored.
        source: The file's name, for messages.

    Raises:
        InputError: For the first invalid line, with its number, and for missing lines.
    """
    study: StudyLine | None = None
    trials: list[FrozenTrial] = []
    number = 0
    try:
        for text in lines:
            number += 1
            if not text.strip():
                continue
            if study is None:
                study = _parse_line(StudyLine, text)
            else:
                trials.append(_parse_trial(text, len(trials), study.trials))
    except UnicodeDecodeError:
        raise InputError(f"{source}: line {number + 1}: not UTF-8 text") from None
    except ValueError as error:
        raise InputError(f"{source}: line {number}: {error}") from None
    if study is None:
        raise InputError(f"{source}: line 1: empty; this is not an exported study")
    if len(trials) < study.trials:
        raise InputError(
            f"{source}: line {number + 1}: {len(trials)} of {study.trials} trials; the file is "
            f"incomplete"
        )
    return study, trials


LineT = TypeVar("LineT", bound=_Line)


def _parse_line(model: type[LineT], text: str) -> LineT:
    """Parse a line; raises ValueError with one line of text."""
    try:
        plain = json.loads(text, parse_constant=_reject_constant, object_hook=_decode_float)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON from column {error.colno} on") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "line"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}, got {first['input']!r:.60}") from None


def _parse_trial(text: str, number: int, count: int) -> FrozenTrial:
    line = _parse_line(TrialLine, text)
    if number >= count:
        raise ValueError(f"more trials than the {count} of the first line")
    if line.number != number:
        raise ValueError(
            f"number: must be {number}, got {line.number}; a line is missing or in the wrong place"
        )
    try:
        return line.to_trial()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"trial: {' '.join(str(error).split())}") from None


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


def _to_utc(local_time: datetime | None) -> str | None:
    return None if local_time is None else local_time.astimezone(timezone.utc).isoformat()


def _to_local_time(time: datetime | None) -> datetime | None:
    """Return local time without a time zone, as Optuna has it."""
    return None if time is None else time.astimezone().replace(tzinfo=None)
