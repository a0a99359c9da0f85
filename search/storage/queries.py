"""Trials read as plain rows, for studies with thousands of trials.

Optuna builds an object of every row. A study of 5,000 trials has half a million rows, which takes
it half a minute; reading them here takes seconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, or_, select, true
from sqlalchemy.orm import Session

from search.storage.optuna_internals import models, study_id, trial_id
from search.storage.retrying_storage import RetryingStorage, backend_of, retried
from search.storage.trial_records import TrialAttr, rank_trials

#: User attributes in a summary of every trial ...
SUMMARY_ATTRS = (
    *(TrialAttr.REASON, TrialAttr.OWNER, TrialAttr.STARTED_AT, TrialAttr.ENDED_AT),
    *(TrialAttr.REQUEUED_FROM, TrialAttr.REQUEUED_AS, TrialAttr.BASELINE),
)
#: ... and of unfinished trials and the best one.
DETAIL_ATTRS = (TrialAttr.CONFIG, TrialAttr.FOLDS)
#: The most ids in one query; databases limit the number of parameters.
MAX_IDS = 500

# Any: the columns of Optuna's tables are declared in a way that select's types do not know.
_TRIAL: Any = models.TrialModel
_USER: Any = models.TrialUserAttributeModel

_Source = Connection | Session
_Condition = ColumnElement[bool]


class TrialReader:
    """Reads the summary of one study's trials repeatedly, and of finished trials only once."""

    def __init__(self, study: optuna.Study) -> None:
        self.storage = backend_of(study)
        self.first_unfinished_id = 0
        self._study_id = study_id(study)
        self._finished: dict[int, FrozenTrial] = {}

    def read(self) -> list[FrozenTrial]:
        """Return every trial by number, with state, value, times and SUMMARY_ATTRS.

        There are no parameters. Values by epoch are of unfinished trials alone, and DETAIL_ATTRS
        of these and the best trial. Raises as the storage does.
        """
        changed = self._read(
            (_TRIAL.study_id == self._study_id) & (_TRIAL.trial_id >= self.first_unfinished_id)
        )
        self._finished |= {trial_id(t): t for t in changed if t.state.is_finished()}
        unfinished = [trial_id(t) for t in changed if not t.state.is_finished()]
        # Ids rise: all trials below the first unfinished one are finished.
        self.first_unfinished_id = min(unfinished, default=max(self._finished, default=-1) + 1)
        trials = self._finished | {trial_id(t): t for t in changed}
        ordered = sorted(trials.values(), key=lambda t: t.number)
        for best in rank_trials(ordered)[:1]:
            if TrialAttr.CONFIG not in best.user_attrs:
                (details,) = self._read(_TRIAL.trial_id == trial_id(best), details=True)
                best.user_attrs = details.user_attrs
        return ordered

    def _read(self, where: _Condition, *, details: bool = False) -> list[FrozenTrial]:
        unfinished = _TRIAL.state.in_([TrialState.WAITING, TrialState.RUNNING])
        keys = _USER.key.in_(SUMMARY_ATTRS)
        keys |= _USER.key.in_(DETAIL_ATTRS) & (true() if details else unfinished)

        def read() -> list[FrozenTrial]:
            with self.storage.engine.connect() as connection:
                users = _attrs(connection, where & keys, _USER)
                steps = _steps(connection, where & unfinished)
                return _trials(connection, where, users, steps)

        return self.storage.retry_transient(read)


class RowStorage(RetryingStorage):
    """A storage for viewers: fast reads that do not lock an SQLite file."""

    @classmethod
    def for_reading(cls, other: RetryingStorage) -> RowStorage:
        """Open a storage with its own connections to the database of another one."""
        url = other.engine.url
        settings = {"connect_args": {"timeout": 60}} if other.engine.name == "sqlite" else {}
        storage = cls(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, **settings},
            skip_table_creation=True,
        )
        storage.redact = other.redact
        return storage

    @retried
    def read_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return the study's trials with a larger id and the included ones, by id."""
        few = len(included_trial_ids) <= MAX_IDS
        since = trial_id_greater_than if few else min(included_trial_ids) - 1
        by_id = _TRIAL.trial_id > since
        if few and included_trial_ids:
            by_id = or_(by_id, _TRIAL.trial_id.in_(included_trial_ids))
        with self.engine.connect() as connection:
            trials = read_trials(connection, (_TRIAL.study_id == study_id) & by_id)
        return [
            t
            for t in trials
            if (states is None or t.state in states)
            and (trial_id(t) > trial_id_greater_than or trial_id(t) in included_trial_ids)
        ]


def read_trials(source: _Source, where: _Condition) -> list[FrozenTrial]:
    """Return the complete trials that a condition on Optuna's table of trials selects, by id."""
    users = _attrs(source, where, _USER)
    systems = _attrs(source, where, models.TrialSystemAttributeModel)
    columns = ("param_name", "param_value", "distribution_json")
    params = _rows(source, where, models.TrialParamModel, *columns)
    return _trials(source, where, users, _steps(source, where), systems, params)


def read_study(study: optuna.Study) -> tuple[dict[str, Any], dict[str, Any], list[FrozenTrial]]:
    """Return a study's user attributes, system attributes and trials, as of one moment."""
    storage, key = backend_of(study), study_id(study)
    engine = storage.engine
    if engine.name != "sqlite":  # whose transactions keep writers out
        engine = engine.execution_options(isolation_level="REPEATABLE READ")

    def read() -> tuple[dict[str, Any], dict[str, Any], list[FrozenTrial]]:
        with Session(engine) as session, session.begin():
            attrs = []
            for model in (models.StudyUserAttributeModel, models.StudySystemAttributeModel):
                query = select(model.key, model.value_json).where(model.study_id == key)
                rows = sorted(session.execute(query).tuples().all())
                attrs.append({name: json.loads(text) for name, text in rows})
            trials = read_trials(session, _TRIAL.study_id == key)
            return attrs[0], attrs[1], sorted(trials, key=lambda t: t.number)

    return storage.retry_transient(read)


def _trials(
    source: _Source,
    where: _Condition,
    users: dict[int, dict[str, Any]],
    steps: dict[int, dict[int, float]],
    systems: Mapping[int, dict[str, Any]] = MappingProxyType({}),
    params: Mapping[int, list[Any]] = MappingProxyType({}),
) -> list[FrozenTrial]:
    """Return trials from their rows and what was read of them, by their ids."""
    table, value_model = _TRIAL.__table__, models.TrialValueModel
    values = _rows(source, where, value_model, "objective", "value", "value_type")
    trials = []
    for row in source.execute(select(table).where(where).order_by(table.c.trial_id)):
        key = row.trial_id
        spaces = {name: _distribution(text) for name, _, text in params.get(key, ())}
        by_objective = sorted(
            (objective, value_model.stored_repr_to_value(value, kind))
            for objective, value, kind in values.get(key, ())
        )
        trials.append(
            FrozenTrial(
                number=row.number,
                trial_id=key,
                state=row.state,
                value=None,
                values=[value for _, value in by_objective] or None,
                datetime_start=_local_time(row.datetime_start),
                datetime_complete=_local_time(row.datetime_complete),
                params={
                    name: spaces[name].to_external_repr(value)
                    for name, value, _ in params.get(key, ())
                },
                distributions=spaces,
                user_attrs=users.get(key, {}),
                system_attrs=systems.get(key, {}),
                intermediate_values=steps.get(key, {}),
            )
        )
    return trials


def _rows(source: _Source, where: _Condition, model: Any, *columns: str) -> dict[int, list[Any]]:
    """Return columns of a table that belongs to trials, by the trial's id."""
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


def _attrs(source: _Source, where: _Condition, model: Any) -> dict[int, dict[str, Any]]:
    rows = _rows(source, where, model, "key", "value_json")
    return {key: {name: json.loads(text) for name, text in attrs} for key, attrs in rows.items()}


def _steps(source: _Source, where: _Condition) -> dict[int, dict[int, float]]:
    model = models.TrialIntermediateValueModel
    rows = _rows(source, where, model, "step", "intermediate_value", "intermediate_value_type")
    to_value = model.stored_repr_to_intermediate_value
    return {
        key: {step: to_value(value, kind) for step, value, kind in steps}
        for key, steps in rows.items()
    }


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    """Parse Optuna's JSON; many trials share a distribution."""
    return json_to_distribution(text)


def _local_time(stored: datetime | None) -> datetime | None:
    """Convert a stored time, naive in UTC, to Optuna's, naive in local time."""
    if stored is None:
        return None
    return stored.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)
