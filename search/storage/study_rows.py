"""Reads and writes of a study's rows within one transaction, as steps of larger operations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import ColumnElement, Float, cast, exists, func, select, update
from sqlalchemy.orm import Session, aliased, with_expression

from search.storage.lease_types import Claim
from search.storage.optuna_internals import Row, models
from search.storage.queries import read_trials
from search.storage.retrying_storage import RetryingStorage, SampledParam
from search.storage.tables import GONE, WorkerRow, WorkerState
from search.storage.trial_records import CLOSED_WITHOUT_COST, QUEUE_ATTRS, EndReason, TrialAttr

#: How often a trial may be lost with its worker and still be requeued.
MAX_LOSSES = 3
#: Attempts whose numbers a requeued trial remembers: one of them has its last checkpoint.
MAX_ATTEMPTS = 8

_TRIAL: Any = models.TrialModel


class StudyRows:
    """A study's rows as one transaction sees them; the caller begins and ends the transaction."""

    def __init__(self, storage: RetryingStorage, study_id: int, session: Session) -> None:
        self.storage, self.study_id, self.session = storage, study_id, session
        self._of_study = _TRIAL.study_id == study_id

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

    def set_trial_attrs(
        self, trial_id: int, attrs: Mapping[str, Any], *, system: bool = False
    ) -> None:
        """Write user or system attributes of a trial that has not ended."""
        trial = self.lock_trial(trial_id)  # otherwise it could end between check and write
        self.storage.check_trial_is_updatable(trial_id, trial.state)
        model = models.TrialSystemAttributeModel if system else models.TrialUserAttributeModel
        self._write_attrs(model, {"trial_id": trial_id}, attrs)

    def write_params(self, trial_id: int, params: Iterable[SampledParam]) -> None:
        """Write the parameters of a trial that has not ended; existing ones stay as they are."""
        model = models.TrialParamModel
        names = select(model.param_name).where(model.trial_id == trial_id)
        existing = set(self.session.scalars(names))  # acknowledgement of an attempt was lost
        for param in params:
            if param.name not in existing:
                self.storage.add_param(self.session, trial_id, *param)

    def read_trial(self, trial_id: int) -> FrozenTrial:
        (trial,) = read_trials(self.session, _TRIAL.trial_id == trial_id)
        return trial

    def lock_trial(self, trial_id: int) -> Row:
        """Return a trial's row, which no other transaction changes until the end of this one."""
        return _TRIAL.find_or_raise_by_id(trial_id, self.session, for_update=True)

    def enqueue(self, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> Row:
        """Add a waiting trial with these parameters and user attributes; return its row."""
        waiting = create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": dict(params)},
            user_attrs=dict(attrs),
        )
        return self.storage.add_trial(self.study_id, waiting, self.session)

    def next_waiting(self) -> Row | None:
        """Return the queue's first trial; requeued trials come before those never started."""
        waiting = select(_TRIAL).where(self._of_study, _TRIAL.state == TrialState.WAITING)
        is_requeued = _has_attr(TrialAttr.REQUEUED_FROM)
        return self.session.scalar(waiting.order_by(is_requeued.desc(), _TRIAL.number).limit(1))

    def running_trials(self) -> Sequence[Row]:
        """Return the rows of all running trials by number."""
        running = select(_TRIAL).where(self._of_study, _TRIAL.state == TrialState.RUNNING)
        return self.session.scalars(running.order_by(_TRIAL.number)).all()

    def training_time(self) -> float:
        """Return the seconds in which at least one worker trained, as of the latest heartbeats.

        A claimed trial starts at this time, and its worker adds the seconds of its own monotonic
        clock. Trials that are trained in parallel have overlapping spans on any clocks of hosts.
        """
        attr: Any = models.TrialUserAttributeModel
        latest = select(func.max(cast(attr.value_json, Float)))
        of_study = latest.join(_TRIAL, _TRIAL.trial_id == attr.trial_id).where(self._of_study)
        return self.session.scalar(of_study.where(attr.key == TrialAttr.TRAINING_END)) or 0.0

    def start_trial(self, trial: Row, worker: WorkerRow) -> Claim:
        """Give a worker the lease on a trial."""
        row = self.session.get_one(WorkerRow, worker.id)
        row.trial_id, row.trial, row.epoch = trial.trial_id, trial.number, 0
        row.state, row.heartbeat_at = WorkerState.TRAINING, self.now()
        trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
        owner = {"worker": worker.id, **asdict(worker.process), **asdict(worker.slot)}
        claim = Claim(trial.trial_id, trial.number, self.training_time())
        attrs = {TrialAttr.OWNER: owner, TrialAttr.STARTED_AT: row.heartbeat_at}
        span = dict.fromkeys((TrialAttr.TRAINING_START, TrialAttr.TRAINING_END), claim.training_s)
        self.set_trial_attrs(trial.trial_id, attrs | span)
        return claim

    def close_trial(self, trial: Row, state: TrialState) -> None:
        """End a trial and free the worker that holds it."""
        trial.state, trial.datetime_complete = state, datetime.now()
        self.session.execute(
            update(WorkerRow)
            .where(WorkerRow.trial_id == trial.trial_id, WorkerRow.state == WorkerState.TRAINING)
            .values(trial_id=None, trial=None, state=WorkerState.IDLE)
        )

    def requeue(self, trial: Row, reason: EndReason, ended_at: float) -> int | None:
        """Close a running trial and queue its parameters again; return the new number, if any."""
        record = self.read_trial(trial.trial_id)
        params = record.system_attrs.get("fixed_params", {}) | record.params
        attrs = record.user_attrs
        times_lost = attrs.get(TrialAttr.TIMES_LOST, 0) + (reason == EndReason.LOST)
        result: dict[str, Any] = {TrialAttr.REASON: reason, TrialAttr.ENDED_AT: ended_at}
        successor = None
        if times_lost > MAX_LOSSES:
            message = f"its worker died with it {times_lost} times"
            result |= {TrialAttr.REASON: EndReason.CRASH, TrialAttr.MESSAGE: message}
        elif params or TrialAttr.FIXED_CONFIG in attrs:
            inherited = {k: v for k, v in attrs.items() if k in QUEUE_ATTRS | {TrialAttr.DIGEST}}
            attempts = [*attrs.get(TrialAttr.ATTEMPTS, []), trial.number]
            inherited[TrialAttr.ATTEMPTS] = attempts[-MAX_ATTEMPTS:]
            inherited[TrialAttr.REQUEUED_FROM] = attrs.get(TrialAttr.REQUEUED_FROM, trial.number)
            if times_lost:
                inherited[TrialAttr.TIMES_LOST] = times_lost
            successor = self.enqueue(params, inherited).number
            result[TrialAttr.REQUEUED_AS] = successor
        self.set_trial_attrs(trial.trial_id, result)
        self.close_trial(trial, TrialState.FAIL)
        return successor

    def count_trials(self) -> tuple[int, int]:
        """Count the trials that cost budget and have ended, and the running ones."""
        with_cost = select(_TRIAL.state, func.count()).where(self._of_study, ~_is_without_cost())
        counts: Any = self.session.execute(with_cost.group_by(_TRIAL.state)).all()
        ended = sum(count for state, count in counts if state.is_finished())
        return ended, sum(count for state, count in counts if state == TrialState.RUNNING)

    def find_duplicate(self, claim: Claim, digest: str) -> int | None:
        """Return the number of another trial with this configuration that costs budget."""
        has_digest = _has_attr(TrialAttr.DIGEST, [digest])
        return self.session.scalar(
            select(_TRIAL.number)
            .where(self._of_study, _TRIAL.trial_id != claim.trial_id)
            .where(has_digest, ~_is_without_cost())
            .order_by(_TRIAL.number)
            .limit(1)
        )

    def select_workers(self) -> Any:
        """Return a query for the workers that are neither ended nor lost, by ordinal."""
        of_study = WorkerRow.study_id == self.study_id
        workers = select(WorkerRow).where(of_study, WorkerRow.state.not_in(GONE))
        age_s = self.now() - WorkerRow.heartbeat_at
        with_age = workers.options(with_expression(WorkerRow.heartbeat_age_s, age_s))
        return with_age.order_by(WorkerRow.ordinal)

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


def _has_attr(key: str, values: Iterable[Any] | None = None) -> ColumnElement[bool]:
    """Return a condition on trials: they have a user attribute, or one of its values."""
    attr: Any = aliased(models.TrialUserAttributeModel)
    condition = exists().where(attr.trial_id == _TRIAL.trial_id, attr.key == key)
    if values is not None:
        condition = condition.where(attr.value_json.in_([json.dumps(value) for value in values]))
    return condition


def _is_without_cost() -> ColumnElement[bool]:
    return _has_attr(TrialAttr.REASON, CLOSED_WITHOUT_COST)
