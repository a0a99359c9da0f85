"""Insert whole studies with one statement per table; one by one, Optuna takes minutes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import select
from sqlalchemy.orm import Session

from search.storage.note_attrs import renumber_notes
from search.storage.optuna_internals import models


def insert_study(
    session: Session,
    name: str,
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
    trials: Sequence[FrozenTrial],
) -> int:
    """Insert a study that maximizes one objective, and return its id.

    Args:
        session: of a storage that has no study of this name; the caller commits.
        name: of the study.
        user_attrs: of the study.
        system_attrs: of the study; notes of trials have the trials' numbers in their keys.
        trials: numbered from 0.
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
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
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


def _utc(local: datetime | None) -> datetime | None:
    return None if local is None else local.astimezone(timezone.utc).replace(tzinfo=None)


def _attr_rows(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]


def _value_rows(trial: FrozenTrial) -> list[dict[str, Any]]:
    if trial.value is None:
        return []
    stored, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
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
    to_stored = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    columns = ("step", "intermediate_value", "intermediate_value_type")
    return [
        dict(zip(columns, (step, *to_stored(value)), strict=True))
        for step, value in trial.intermediate_values.items()
    ]


#: The tables that hold a trial's fields, and the rows of a trial in each.
_TRIAL_TABLES: Mapping[Any, Callable[[FrozenTrial], list[dict[str, Any]]]] = {
    models.TrialValueModel: _value_rows,
    models.TrialParamModel: _param_rows,
    models.TrialUserAttributeModel: lambda t: _attr_rows(t.user_attrs),
    models.TrialSystemAttributeModel: lambda t: _attr_rows(t.system_attrs),
    models.TrialIntermediateValueModel: _step_rows,
}
