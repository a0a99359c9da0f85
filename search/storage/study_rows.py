"""Reads and writes of a study's rows within one transaction, as steps of larger operations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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

from search.storage.lease_types import Claim, WorkerInfo
from search.storage.optuna_internals import Row, models
from search.storage.retrying_storage import RetryingStorage, SampledParam
from search.storage.tables import WorkerRow, WorkerState
from search.storage.trial_records import CLOSED_WITHOUT_COST, QUEUE_ATTRS, EndReason, TrialAttr

#: How often a trial may be lost with its worker and still be requeued.
MAX_LOSSES = 3
#: Attempts whose numbers a requeued trial remembers: one of them has its last checkpoint.
MAX_ATTEMPTS = 8


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

    def start_trial(self, trial: Row, worker: WorkerInfo) -> Claim:
        """Give a worker the lease on a trial."""
        now = self.now()
        trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
        attrs = {TrialAttr.OWNER: worker.owner(), TrialAttr.STARTED_AT: now}
        self.set_trial_attrs(trial.trial_id, attrs)
        lease = {"trial_id": trial.trial_id, "trial_number": trial.number}
        self.update_worker(worker, **lease, state=WorkerState.TRAINING, heartbeat_at=now, epoch=0)
        return Claim(trial.trial_id, trial.number)

    def requeue(self, trial: Row, reason: EndReason, ended_at: float) -> int | None:
        """Close a running trial and queue its parameters again; return the new number, if any."""
        attrs = self.trial_attrs(trial.trial_id)
        times_lost = attrs.get(TrialAttr.TIMES_LOST, 0) + (reason == EndReason.LOST)
        result: dict[str, Any] = {TrialAttr.REASON: reason, TrialAttr.ENDED_AT: ended_at}
        successor = None
        if times_lost > MAX_LOSSES:
            message = f"its worker died with it {times_lost} times"
            result |= {TrialAttr.REASON: EndReason.CRASH, TrialAttr.MESSAGE: message}
        else:
            successor = self._enqueue_again(trial, attrs, times_lost)
        if successor is not None:
            result[TrialAttr.REQUEUED_AS] = successor
        self.set_trial_attrs(trial.trial_id, result)
        self.close_trial(trial, TrialState.FAIL)
        return successor

    def running_trials(self) -> Sequence[Row]:
        """Return the rows of all running trials by number."""
        trial = models.TrialModel
        running = select(trial).where(
            trial.study_id == self.study_id, trial.state == TrialState.RUNNING
        )
        return self.session.scalars(running.order_by(trial.number)).all()

    def count_trials(self) -> tuple[int, int]:
        """Count the trials that cost budget and have ended, and the running ones."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        of_study = trial.study_id == self.study_id
        states = select(trial.state, func.count()).where(of_study).group_by(trial.state)
        by_state = {state: count for state, count in self.session.execute(states)}  # noqa: C416
        without_cost = self.session.scalar(
            select(func.count())
            .select_from(trial)
            .join(attr, attr.trial_id == trial.trial_id)
            .where(of_study, attr.key == TrialAttr.REASON)
            .where(attr.value_json.in_(sorted(map(json.dumps, CLOSED_WITHOUT_COST))))
            .where(trial.state.in_([TrialState.PRUNED, TrialState.FAIL]))
        )
        ended = sum(count for state, count in by_state.items() if state.is_finished())
        return ended - (without_cost or 0), by_state.get(TrialState.RUNNING, 0)

    def find_duplicate(self, claim: Claim, digest: str) -> int | None:
        """Return the number of another trial with this configuration that is not skipped."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        rows = self.session.execute(
            select(trial.number, trial.trial_id)
            .join(attr, attr.trial_id == trial.trial_id)
            .where(trial.study_id == self.study_id, trial.trial_id != claim.trial_id)
            .where(attr.key == TrialAttr.DIGEST, attr.value_json == json.dumps(digest))
            .order_by(trial.number)
        )
        for number, trial_id in rows:
            if self.trial_attrs(trial_id).get(TrialAttr.REASON) not in CLOSED_WITHOUT_COST:
                return int(number)
        return None

    def select_workers(self) -> Any:
        """Return a query for the workers that are neither ended nor lost, by ordinal."""
        return (
            select(WorkerRow)
            .where(
                WorkerRow.study_id == self.study_id,
                WorkerRow.state.not_in([WorkerState.LOST, WorkerState.ENDED]),
            )
            .order_by(WorkerRow.ordinal)
        )

    def update_worker(self, worker: WorkerInfo, **values: Any) -> None:
        """Change columns of a worker's row."""
        row = update(WorkerRow).where(WorkerRow.id == worker.id)
        self.session.execute(row.values(**values))

    def _enqueue_again(self, trial: Row, attrs: Mapping[str, Any], times_lost: int) -> int | None:
        """Queue a trial's parameters or fixed configuration; None where it has neither yet."""
        params = self.params(trial.trial_id)
        if not params and TrialAttr.FIXED_CONFIG not in attrs:
            return None
        inherited = {k: v for k, v in attrs.items() if k in QUEUE_ATTRS | {TrialAttr.DIGEST}}
        attempts = [*attrs.get(TrialAttr.ATTEMPTS, []), trial.number][-MAX_ATTEMPTS:]
        inherited[TrialAttr.ATTEMPTS] = attempts
        inherited[TrialAttr.REQUEUED_FROM] = attrs.get(TrialAttr.REQUEUED_FROM, trial.number)
        if times_lost:
            inherited[TrialAttr.TIMES_LOST] = times_lost
        return self.enqueue(params, inherited)

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
