"""The lines of an exported study: what they hold, how they are written, how they are checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from types import NoneType
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from lesionseg.errors import InputError, nearest
from search.storage.optuna_internals import models, validate_trial

#: What the first line calls itself; the number grows when older programs could not read it.
FORMAT = "lesionsearch-study/1"

#: The fields of the first line, and of a trial's, with the types that JSON gives them.
HEAD: Mapping[str, tuple[type, ...]] = {
    "format": (str,),
    "study": (str,),
    "direction": (str,),
    "trials": (int,),
    "user_attrs": (dict,),
    "system_attrs": (dict,),
    "optuna": (str,),
    "lesionsearch": (str,),
    "exported": (str,),
}
TRIAL: Mapping[str, tuple[type, ...]] = {
    "number": (int,),
    "state": (str,),
    "value": (float, int, NoneType),
    "params": (dict,),
    "distributions": (dict,),
    "user_attrs": (dict,),
    "system_attrs": (dict,),
    "intermediate_values": (dict,),
    "datetime_start": (str, NoneType),
    "datetime_complete": (str, NoneType),
}
#: What a database takes for the number of an epoch.
_STEPS = range(-(2**31), 2**31)

#: Stands for a number that JSON has none for; a key of somebody's that looks like it gets one
#: more "$", so that nothing is read as what it is not.
_TAG = "$float"
_LIKE_TAG = re.compile(r"\$+float")


class _Wrong(ValueError):
    """What is wrong with a line, without saying which."""


@dataclass(frozen=True)
class Head:
    """What is said of the study as a whole. exported: when, in seconds since 1970."""

    study: str
    trials: int
    exported: float
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]


def safe(value: Any) -> Any:
    """The same for strict JSON: no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else {_TAG: str(value)}
    if isinstance(value, Mapping):
        return {_spelt(key): safe(v) for key, v in value.items()}
    return [safe(v) for v in value] if isinstance(value, list | tuple) else value


def unsafe(value: Any) -> Any:
    """What ``safe`` was made of."""
    if isinstance(value, list):
        return [unsafe(v) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TAG}:
        return float(value[_TAG])
    return {k[1:] if _LIKE_TAG.fullmatch(k) else k: unsafe(v) for k, v in value.items()}


def local(text: str | None) -> datetime | None:
    """Optuna's way: by the clock on the wall here, without saying where."""
    return None if text is None else _moment(text).astimezone().replace(tzinfo=None)


def trial_line(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as the fields of its line."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value,
        "params": trial.params,
        "distributions": {
            name: json.loads(distribution_to_json(space))
            for name, space in trial.distributions.items()
        },
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
        "datetime_start": _utc(trial.datetime_start),
        "datetime_complete": _utc(trial.datetime_complete),
    }


def _utc(local_time: datetime | None) -> str | None:
    return None if local_time is None else local_time.astimezone(timezone.utc).isoformat()


def read_lines(lines: Iterable[str], source: str) -> tuple[Head, list[FrozenTrial]]:
    """Everything that an exported file holds, checked.

    InputError for the first line that is wrong, with its number, and for a file cut off.
    """
    head: Head | None = None
    known: list[FrozenTrial] = []
    number = 0
    try:
        for text in lines:
            number += 1
            if not text.strip():
                continue
            if head is None:
                head = _head(_parsed(text))
            else:
                known.append(_trial(_parsed(text), len(known), head.trials))
    except _Wrong as wrong:
        raise InputError(f"{source}: line {number}: {wrong}") from None
    except UnicodeDecodeError:
        raise InputError(f"{source}: line {number + 1}: not text in UTF-8") from None
    if head is None:
        raise InputError(f"{source}: line 1: empty; an exported study begins with its first line")
    if len(known) < head.trials:
        raise InputError(
            f"{source}: line {number + 1}: ends after {len(known)} of {head.trials} trials; it was "
            f"cut off"
        )
    return head, known


def _parsed(text: str) -> dict[str, Any]:
    try:
        plain = unsafe(json.loads(text, parse_constant=_refuse))
    except json.JSONDecodeError as error:
        raise _Wrong(f"not JSON from column {error.colno} on: damaged or cut off") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise _Wrong(f"not JSON as it is exported: {error}") from None
    if not isinstance(plain, dict):
        raise _Wrong(f"must be keys and values, got {type(plain).__name__}")
    return plain


def _refuse(constant: str) -> Any:
    raise ValueError(f"a bare {constant}")


def _head(line: dict[str, Any]) -> Head:
    found = line.get("format")
    if found != FORMAT:
        later = str(found).startswith(FORMAT[:-1])
        told = "a later lesionsearch wrote it" if later else "this is no exported study"
        raise _Wrong(f"format: must be {FORMAT!r}, got {found!r}: {told}")
    _check_fields(line, HEAD)
    if line["direction"] != "maximize":
        raise _Wrong(f"direction: must be 'maximize', got {line['direction']!r}")
    for key in ("user_attrs", "system_attrs"):
        _check_keys(key, line[key])
    exported = _made("exported", lambda: _moment(line["exported"]).timestamp())
    attrs = line["user_attrs"], line["system_attrs"]
    return Head(line["study"], line["trials"], exported, *attrs)


def _trial(line: dict[str, Any], expected: int, announced: int) -> FrozenTrial:
    _check_fields(line, TRIAL)
    if expected >= announced:
        raise _Wrong(f"a trial too many: the first line says {announced}")
    if line["number"] != expected:
        raise _Wrong(
            f"number: must be {expected}, got {line['number']}: a line is missing or moved"
        )
    states = TrialState.__members__
    if line["state"] not in states:
        raise _Wrong(f"state: must be one of {', '.join(states)}, got {line['state']!r}")
    for key in ("params", "user_attrs", "system_attrs"):
        _check_keys(key, line[key])
    trial = FrozenTrial(
        number=expected,
        trial_id=expected,
        state=TrialState[line["state"]],
        params=line["params"],
        user_attrs=line["user_attrs"],
        system_attrs=line["system_attrs"],
        value=_made("value", lambda: None if line["value"] is None else float(line["value"])),
        distributions=_made("distributions", lambda: _distributions(line)),
        intermediate_values=_made("intermediate_values", lambda: _steps(line)),
        datetime_start=_made("datetime_start", lambda: local(line["datetime_start"])),
        datetime_complete=_made("datetime_complete", lambda: local(line["datetime_complete"])),
    )
    _made("trial", lambda: validate_trial(trial))
    if trial.value is not None and (math.isnan(trial.value) or not trial.state.is_finished()):
        raise _Wrong(f"value: {line['state']} cannot have {trial.value!r}")
    return trial


def _made(field: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise _Wrong(f"{field}: {' '.join(str(error).split())}") from None


def _distributions(line: Mapping[str, Any]) -> dict[str, Any]:
    return {k: json_to_distribution(json.dumps(v)) for k, v in line["distributions"].items()}


def _steps(line: Mapping[str, Any]) -> dict[int, float]:
    steps = {int(k): v for k, v in line["intermediate_values"].items()}
    for step, value in steps.items():
        if step not in _STEPS or type(value) not in (int, float):
            raise ValueError(f"must be numbers by epoch, got {value!r} at {step}")
    return {step: float(value) for step, value in steps.items()}


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"must have an offset to UTC, got {text!r}")
    return at


def _check_fields(line: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]) -> None:
    for key in line:
        if key not in fields:
            raise _Wrong(f"unknown field {key!r} ({nearest(key, fields)})")
    for key, types in fields.items():
        if key not in line:
            raise _Wrong(f"{key}: is missing")
        if type(line[key]) not in types:  # not isinstance: true is no number
            raise _Wrong(f"{key}: must be {_WORDS[types[0]]}, got {line[key]!r:.60}")


_WORDS = {int: "a whole number", float: "a number", str: "a text", dict: "keys and values"}


def _check_keys(field: str, attrs: Mapping[str, Any]) -> None:
    for key in attrs:
        if not 0 < len(key) <= models.MAX_INDEXED_STRING_LENGTH or not key.isprintable():
            raise _Wrong(f"{field}: no name that a database takes: {key!r:.60}")


def _spelt(key: Any) -> str:
    return f"${key}" if _LIKE_TAG.fullmatch(str(key)) else str(key)
