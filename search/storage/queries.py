"""Trials read and inserted as plain rows, for studies with thousands of trials.

Optuna builds an object of every row. A study of 5,000 trials has half a million rows, which takes
it half a minute; reading them here takes seconds. Inserting them one by one takes Optuna minutes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement, Connection, select
from sqlalchemy.orm import Session

from search.storage.note_attrs import renumber_notes
from search.storage.optuna_internals import models

# Any: the columns of Optuna's tables are declared in a way that select's types do not know.
_TRIAL: Any = models.TrialModel
_VALUE: Any = models.TrialValueModel
_STEP: Any = models.TrialIntermediateValueModel

# Many trials share a distribution.
_distribution = lru_cache(maxsize=4096)(json_to_distribution)


def read_trials(source: Connection | Session, where: ColumnElement[bool]) -> list[FrozenTrial]:
    """Return the trials that a condition on Optuna's table of trials selects, by id."""

    def read(model: Any, *columns: str) -> dict[int, list[Any]]:
        query = (
            select(model.trial_id, *(getattr(model, column) for column in columns))
            .join(_TRIAL, _TRIAL.trial_id == model.trial_id)
            .where(where)
            .order_by(*model.__table__.primary_key.columns)
        )
        rows: dict[int, list[Any]] = defaultdict(list)
        for row in source.execute(query):
            rows[row[0]].append(row[1:])
        return rows

    # The states first: a trial that ends meanwhile must not seem to have ended without a value.
    table = _TRIAL.__table__
    trials = source.execute(select(table).where(where).order_by(table.c.trial_id)).all()
    user_attrs = read(models.TrialUserAttributeModel, "key", "value_json")
    system_attrs = read(models.TrialSystemAttributeModel, "key", "value_json")
    params = read(models.TrialParamModel, "param_name", "param_value", "distribution_json")
    values = read(_VALUE, "objective", "value", "value_type")
    steps = read(_STEP, "step", "intermediate_value", "intermediate_value_type")
    to_value, to_step_value = _VALUE.stored_repr_to_value, _STEP.stored_repr_to_intermediate_value
    result = []
    for row in trials:
        key = row.trial_id
        spaces = {name: _distribution(text) for name, _, text in params[key]}
        result.append(
            FrozenTrial(
                number=row.number,
                trial_id=key,
                state=row.state,
                value=None,
                values=[to_value(v, kind) for _, v, kind in sorted(values[key])] or None,
                datetime_start=_to_local(row.datetime_start),
                datetime_complete=_to_local(row.datetime_complete),
                params={name: spaces[name].to_external_repr(v) for name, v, _ in params[key]},
                distributions=spaces,
                user_attrs={name: json.loads(text) for name, text in user_attrs[key]},
                system_attrs={name: json.loads(text) for name, text in system_attrs[key]},
                intermediate_values={
                    step: to_step_value(v, kind) for step, v, kind in sorted(steps[key])
                },
            )
        )
    return result


def insert_study(
    session: Session,
    name: str,
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
    trials: Sequence[FrozenTrial],
) -> int:
    """Insert a study that maximizes one objective, and return its id; the caller commits.

    Notes of trials have the trials' numbers, which count from 0, in the keys of ``system_attrs``.
    """
    directions = [models.StudyDirectionModel(objective=0, direction=StudyDirection.MAXIMIZE)]
    study = models.StudyModel(study_name=name, directions=directions)
    session.add(study)
    session.flush()
    study_id = int(study.study_id)
    ids = insert_trials(session, study_id, trials)
    for model, attrs in (
        (models.StudyUserAttributeModel, user_attrs),
        (models.StudySystemAttributeModel, renumber_notes(system_attrs, ids)),
    ):
        _insert(session, model, [{"study_id": study_id} | row for row in _attr_rows(attrs)])
    return study_id


def insert_trials(session: Session, study_id: int, trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Insert trials with their numbers into a study; return their ids by number."""
    model = models.TrialModel
    rows = [
        {
            "study_id": study_id,
            "number": trial.number,
            "state": trial.state,
            "datetime_start": _to_utc(trial.datetime_start),
            "datetime_complete": _to_utc(trial.datetime_complete),
        }
        for trial in trials
    ]
    # In order of the numbers: Optuna counts the smaller ids to number the next trial.
    _insert(session, model, rows)
    query = select(model.number, model.trial_id).where(model.study_id == study_id)
    ids = {row.number: row.trial_id for row in session.execute(query)}
    for table, rows_of in _TRIAL_TABLES.items():
        rows = [{"trial_id": ids[t.number]} | row for t in trials for row in rows_of(t)]
        _insert(session, table, rows)
    return ids


def _insert(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.execute(model.__table__.insert(), rows)


def _to_local(utc: datetime | None) -> datetime | None:
    """Convert a stored time to Optuna's, which is local; both are naive."""
    return utc and utc.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)


def _to_utc(local: datetime | None) -> datetime | None:
    return local and local.astimezone(timezone.utc).replace(tzinfo=None)


def _attr_rows(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]


def _value_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    if trial.value is None:
        return []
    stored, kind = _VALUE.value_to_stored_repr(trial.value)
    return [{"objective": 0, "value": stored, "value_type": kind}]


def _param_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {
            "param_name": name,
            "param_value": distribution.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in trial.distributions.items()
    ]


def _step_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    to_stored = _STEP.intermediate_value_to_stored_repr
    columns = ("step", "intermediate_value", "intermediate_value_type")
    return [
        dict(zip(columns, (step, *to_stored(value)), strict=True))
        for step, value in trial.intermediate_values.items()
    ]


#: The tables that hold a trial's fields, and the rows of a trial in each.
_TRIAL_TABLES: Mapping[Any, Callable[[FrozenTrial], list[dict[str, Any]]]] = {
    _VALUE: _value_rows,
    models.TrialParamModel: _param_rows,
    models.TrialUserAttributeModel: lambda t: _attr_rows(t.user_attrs),
    models.TrialSystemAttributeModel: lambda t: _attr_rows(t.system_attrs),
    _STEP: _step_rows,
}
