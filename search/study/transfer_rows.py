"""A whole study's rows, read and written at once: one by one, Optuna's way takes minutes.

The names with an underscore that are used here are Optuna 5's; tests hold them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from search.monitoring import notes
from search.storage.optuna_internals import models

#: Optuna's columns carry no types.
Rows = Mapping[int, Sequence[Any]]


def attrs_of(session: Session, study_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A study's user and system attributes; notes of trials are called by the trials' numbers."""
    user, system = models.StudyUserAttributeModel, models.StudySystemAttributeModel
    found = [select(m.key, m.value_json).where(m.study_id == study_id) for m in (user, system)]
    user_attrs, system_attrs = (_attrs(session.execute(query).all()) for query in found)
    numbers = {i: number for number, i in _ids(session, study_id).items()}
    return user_attrs, notes.renumbered(system_attrs, numbers)


def lines_of(session: Session, study_id: int) -> Iterator[dict[str, Any]]:
    """A study's trials as the lines of its file, by number."""
    value, step = models.TrialValueModel, models.TrialIntermediateValueModel
    param = models.TrialParamModel
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel

    def found(model: Any, *columns: Any) -> Rows:
        return _by_trial(session, study_id, model, columns)

    values = found(value, value.value, value.value_type)
    params = found(param, param.param_name, param.param_value, param.distribution_json)
    users, systems = (found(m, m.key, m.value_json) for m in (user, system))
    steps = found(step, step.step, step.intermediate_value, step.intermediate_value_type)
    trial = models.TrialModel
    of_study = select(trial.__table__).where(trial.study_id == study_id).order_by(trial.number)
    for row in session.execute(of_study):
        i = row.trial_id
        yield {
            "number": row.number,
            "state": row.state.name,
            "value": next((value.stored_repr_to_value(v, kind) for _, v, kind in values[i]), None),
            "params": {k: distribution(told).to_external_repr(v) for _, k, v, told in params[i]},
            "distributions": {k: _plain(told) for _, k, _, told in params[i]},
            "user_attrs": _attrs([r[1:] for r in users[i]]),
            "system_attrs": _attrs([r[1:] for r in systems[i]]),
            "intermediate_values": {
                str(k): step.stored_repr_to_intermediate_value(v, kind)
                for _, k, v, kind in sorted(steps[i], key=lambda r: r[1])
            },
            "datetime_start": _utc(row.datetime_start),
            "datetime_complete": _utc(row.datetime_complete),
        }


def insert(
    session: Session,
    name: str,
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
    known: Sequence[FrozenTrial],
) -> int:
    """Writes all of a study; its id."""
    study = models.StudyModel(study_name=name)
    session.add(study)
    session.flush()
    study_id, of_study = int(study.study_id), {"study_id": int(study.study_id)}
    maximize = {"objective": 0, "direction": StudyDirection.MAXIMIZE}
    _write(session, models.StudyDirectionModel, [of_study | maximize])
    user = _json_rows(user_attrs)
    _write(session, models.StudyUserAttributeModel, [of_study | row for row in user])
    # One after the other: Optuna counts the smaller ids to number the next trial.
    _write(session, models.TrialModel, [of_study | _trial_row(t) for t in known])
    ids = _ids(session, study_id)
    system = _json_rows(notes.renumbered(system_attrs, ids))
    _write(session, models.StudySystemAttributeModel, [of_study | row for row in system])
    for model, rows_of in _OF_A_TRIAL.items():
        rows = ({"trial_id": ids[t.number]} | row for t in known for row in rows_of(t))
        _write(session, model, list(rows))
    return study_id


def _ids(session: Session, study_id: int) -> dict[int, int]:
    """Trials' ids by their numbers."""
    trial = models.TrialModel
    found = select(trial.number, trial.trial_id).where(trial.study_id == study_id)
    return {row.number: row.trial_id for row in session.execute(found)}


@lru_cache(maxsize=4096)
def distribution(text: str) -> BaseDistribution:
    """What Optuna's JSON says; many trials say the same."""
    return json_to_distribution(text)


@lru_cache(maxsize=4096)
def _plain(text: str) -> Any:
    return json.loads(distribution_to_json(distribution(text)))


def _by_trial(session: Session, study_id: int, model: Any, columns: Sequence[Any]) -> Rows:
    trial, table = models.TrialModel, model.__table__
    query = (
        select(model.trial_id, *columns)
        .join(trial, trial.trial_id == model.trial_id)
        .where(trial.study_id == study_id)
        .order_by(*table.primary_key.columns)
    )
    found: dict[int, list[Any]] = defaultdict(list)
    for row in session.execute(query):
        found[row[0]].append(row)
    return found


def _attrs(rows: Sequence[Any]) -> dict[str, Any]:
    """By key: a database gives them in whatever order."""
    return {key: json.loads(text) for key, text in sorted(tuple(row) for row in rows)}


def _utc(at: datetime | None) -> str | None:
    return None if at is None else at.replace(tzinfo=timezone.utc).isoformat()


def _write(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    table: Table = model.__table__
    if rows:
        session.execute(table.insert(), rows)


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    dated = {key: getattr(trial, key) for key in ("datetime_start", "datetime_complete")}
    plain = {
        key: at and at.astimezone(timezone.utc).replace(tzinfo=None) for key, at in dated.items()
    }
    return {"number": trial.number, "state": trial.state, **plain}


def _json_rows(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]


def _step_row(step: int, value: float) -> dict[str, Any]:
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def _value_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    if trial.value is None:
        return []
    stored, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
    return [{"objective": 0, "value": stored, "value_type": kind}]


def _param_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {
            "param_name": name,
            "param_value": drawn_from.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(drawn_from),
        }
        for name, drawn_from in trial.distributions.items()
    ]


#: The tables that hold a trial's fields, and what goes into them.
_OF_A_TRIAL: Mapping[Any, Callable[[FrozenTrial], list[dict[str, Any]]]] = {
    models.TrialValueModel: _value_rows,
    models.TrialParamModel: _param_rows,
    models.TrialUserAttributeModel: lambda t: _json_rows(t.user_attrs),
    models.TrialSystemAttributeModel: lambda t: _json_rows(t.system_attrs),
    models.TrialIntermediateValueModel: lambda t: [
        _step_row(step, value) for step, value in t.intermediate_values.items()
    ],
}
