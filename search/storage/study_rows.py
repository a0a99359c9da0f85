"""Reads and writes of a study's rows within one transaction, as steps of larger operations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import (
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import TrialState, create_trial
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from search.storage.optuna_internals import Row, models
from search.storage.retrying_storage import RetryingStorage, SampledParam
from search.storage.tables import WorkerRow, WorkerState
from search.storage.trial_records import TrialAttr


class StudyRows:
    """A study's rows as one transaction sees them; the caller begins and ends the transaction."""

    def __init__(self, storage: RetryingStorage, study_id: int, session: Session) -> None:
        self.storage, self.study_id, self.session = storage, study_id, session

    def lock(self) -> None:
        """Keep other transactions on this study from beginning before the end of this one."""
        models.StudyModel.find_or_raise_by_id(self.study_id, self.session, for_update=True)

    def now(self) -> float:
        """Return seconds since 1970 by the database's clock, the same for all hosts."""
        if self.session.get_bind().dialect.name == "sqlite":
            days: Any = self.session.scalar(select(func.julianday("now") - 2440587.5))
            return float(days) * 86400
        seconds: Any = self.session.scalar(select(func.extract("epoch", func.clock_timestamp())))
        return float(seconds)

    def study_attr(self, key: str, default: Any = None) -> Any:
        """Return a user attribute of the study."""
        model = models.StudyUserAttributeModel
        text = self.session.scalar(
            select(model.value_json).where(model.study_id == self.study_id, model.key == key)
        )
        return default if text is None else json.loads(text)

    def set_study_attrs(self, attrs: Mapping[str, Any], *, system: bool = False) -> None:
        """Write user or system attributes of the study."""
        model = models.StudySystemAttributeModel if system else models.StudyUserAttributeModel
        self._write_attrs(model, {"study_id": self.study_id}, attrs)

    def trial_attr(self, trial_id: int, key: str) -> Any:
        """Return a user attribute of a trial; None where it has none of the key."""
        model = models.TrialUserAttributeModel
        text = self.session.scalar(
            select(model.value_json).where(model.trial_id == trial_id, model.key == key)
        )
        return None if text is None else json.loads(text)

    def trial_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return all user attributes of a trial."""
        model = models.TrialUserAttributeModel
        rows: Iterable[Row] = self.session.scalars(select(model).where(model.trial_id == trial_id))
        return {row.key: json.loads(row.value_json) for row in rows}

    def set_trial_attrs(
        self, trial_id: int, attrs: Mapping[str, Any], *, system: bool = False
    ) -> None:
        """Write user or system attributes of a trial that has not ended."""
        self._check_updatable(trial_id)
        model = models.TrialSystemAttributeModel if system else models.TrialUserAttributeModel
        self._write_attrs(model, {"trial_id": trial_id}, attrs)

    def record_epochs(self, trial_id: int, values: Mapping[int, float]) -> None:
        """Write a trial's values of several epochs, over existing ones."""
        for epoch, value in values.items():
            self.storage.add_intermediate_value(self.session, trial_id, epoch, value)

    def write_params(self, trial_id: int, params: Iterable[SampledParam]) -> None:
        """Write the parameters of a trial that has not ended; existing ones stay as they are."""
        self._check_updatable(trial_id)
        model = models.TrialParamModel
        names = select(model.param_name).where(model.trial_id == trial_id)
        existing = set(self.session.scalars(names))
        for name, value, distribution, previous in params:
            if name in existing:  # written by an attempt whose acknowledgement was lost
                continue
            if previous is None:  # Optuna compares with the other trials
                self.storage.add_param(self.session, trial_id, name, value, distribution)
                continue
            check_distribution_compatibility(previous, distribution)
            row = {"trial_id": trial_id, "param_name": name, "param_value": value}
            row["distribution_json"] = distribution_to_json(distribution)
            self.session.add(model(**row))

    def params(self, trial_id: int) -> dict[str, Any]:
        """Return a trial's parameters: sampled ones, and queued ones that are not sampled yet."""
        system, param = models.TrialSystemAttributeModel, models.TrialParamModel
        queued: Iterable[Row] = self.session.scalars(
            select(system)
            .where(system.trial_id == trial_id)
            .where(system.key.startswith("fixed_params"))
        )
        params: dict[str, Any] = {}
        for row in queued:
            params |= json.loads(row.value_json)
        sampled: Iterable[Row] = self.session.scalars(
            select(param).where(param.trial_id == trial_id)
        )
        for row in sampled:
            distribution = json_to_distribution(row.distribution_json)
            params[row.param_name] = distribution.to_external_repr(row.param_value)
        return params

    def lock_trial(self, trial_id: int) -> Row:
        """Return a trial's row, which no other transaction changes until the end of this one."""
        return models.TrialModel.find_or_raise_by_id(trial_id, self.session, for_update=True)

    def add_running_trial(self) -> Row:
        """Add a running trial and return its row."""
        return self.storage.add_trial(self.session, self.study_id, None)

    def enqueue(self, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> int:
        """Add a waiting trial with these parameters and user attributes; return its number."""
        template = create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": dict(params)},
            user_attrs=dict(attrs),
        )
        return int(self.storage.add_trial(self.session, self.study_id, template).number)

    def next_waiting(self) -> Row | None:
        """Return the queue's first trial; requeued trials come before those never started."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        is_requeued = (
            select(attr.trial_id)
            .where(attr.trial_id == trial.trial_id, attr.key == TrialAttr.REQUEUED_FROM)
            .exists()
        )
        row: Row | None = self.session.scalars(
            select(trial)
            .where(trial.study_id == self.study_id, trial.state == TrialState.WAITING)
            .order_by(is_requeued.desc(), trial.number)
            .limit(1)
        ).first()
        return row

    def close_trial(self, trial: Row, state: TrialState) -> None:
        """End a trial and free the worker that holds it."""
        trial.state, trial.datetime_complete = state, datetime.now()
        self.session.execute(
            update(WorkerRow)
            .where(WorkerRow.trial_id == trial.trial_id, WorkerRow.state == WorkerState.TRAINING)
            .values(trial_id=None, trial_number=None, state=WorkerState.IDLE)
        )

    def _check_updatable(self, trial_id: int) -> None:
        trial: Row = models.TrialModel.find_or_raise_by_id(trial_id, self.session)
        self.storage.check_trial_is_updatable(trial_id, trial.state)

    def _write_attrs(self, model: Any, key_of: dict[str, int], attrs: Mapping[str, Any]) -> None:
        """Write attributes of one study or trial, over existing ones, after a single query."""
        rows: Iterable[Row] = self.session.scalars(
            select(model).filter_by(**key_of).where(model.key.in_(attrs))
        )
        existing = {row.key: row for row in rows}
        for key, value in attrs.items():
            if key in existing:
                existing[key].value_json = json.dumps(value)
            else:
                self.session.add(model(**key_of, key=key, value_json=json.dumps(value)))
