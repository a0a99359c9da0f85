"""What the leases does within one transaction: the rows of a study, read and written.

Nothing here begins or ends a transaction, and none of it is to be called outside of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from optuna.distributions import (
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import TrialState, create_trial
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from search.storage import schema as tables
from search.storage import trial_records
from search.storage.optuna_internals import models
from search.storage.process_id import ProcessId
from search.storage.retrying_storage import Drawn, RetryingStorage
from search.trial_process.slot import Slot

#: A row of Optuna's tables, whose columns carry no types.
Row = Any

#: How often a trial may be lost with its worker and still be queued again.
MAX_LOSSES = 3
#: Earlier attempts of a trial that are remembered: one of them has its last checkpoint.
ATTEMPTS = 8

Command = Literal["run", "pause", "stop"]
#: Why nothing was claimed: the rest of the budget is being worked on, or there is none.
Refusal = Literal["full", "spent"]


class WorkerExpired(RuntimeError):
    """The worker was taken for dead and is not in the books any more."""


@dataclass(frozen=True)
class Claim:
    """A trial that is this worker's now."""

    trial_id: int
    number: int


@dataclass(frozen=True)
class HeartbeatReply:
    """The answer to a beat. lease: whether the worker still holds what it thinks it holds."""

    command: Command
    lease: bool


@dataclass(frozen=True)
class WorkerInfo:
    """A worker as others see it. age: seconds since its last beat; trial: its number, if any."""

    id: str
    who: ProcessId
    slot: Slot
    state: str
    trial: int | None
    epoch: int
    age: float
    ordinal: int


class LeaseTransaction:
    """A study's rows, as one transaction sees them."""

    def __init__(self, storage: RetryingStorage, study_id: int, session: Session) -> None:
        self._storage, self._study_id, self.session = storage, study_id, session

    def lock(self) -> None:
        """Nobody else's transaction on this study begins before this one's end."""
        models.StudyModel.find_or_raise_by_id(self._study_id, self.session, for_update=True)

    def now(self) -> float:
        """Seconds since 1970 by the database's clock, the same for all hosts."""
        if self.session.get_bind().dialect.name == "sqlite":
            days: Any = self.session.scalar(select(func.julianday("now") - 2440587.5))
            return float(days) * 86400
        seconds: Any = self.session.scalar(select(func.extract("epoch", func.clock_timestamp())))
        return float(seconds)

    def set(self, worker: WorkerInfo, **values: Any) -> None:
        """Changes columns of a worker's row."""
        self.session.execute(
            update(tables.Worker).where(tables.Worker.id == worker.id).values(**values)
        )

    def command(self) -> Command:
        """What all workers are told."""
        found: Command = self.study_attr(trial_records.StudyAttr.COMMAND, "run")
        return found

    def study_attr(self, key: str, default: Any) -> Any:
        """A user attribute of the study."""
        model = models.StudyUserAttributeModel
        text = self.session.scalar(
            select(model.value_json).where(model.study_id == self._study_id, model.key == key)
        )
        return default if text is None else json.loads(text)

    def set_study_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Of a study that has none of these."""
        for key, value in attrs.items():
            row = {"study_id": self._study_id, "key": key, "value_json": json.dumps(value)}
            self.session.add(models.StudyUserAttributeModel(**row))

    def describe(self, attrs: Mapping[str, Any]) -> None:
        """Writes Optuna's own attributes of the study."""
        model = models.StudySystemAttributeModel
        there: Iterable[Row] = self.session.scalars(
            select(model).where(model.study_id == self._study_id, model.key.in_(attrs))
        )
        known = {row.key: row for row in there}
        for key, value in attrs.items():
            if key in known:
                known[key].value_json = json.dumps(value)
            else:
                row = {"study_id": self._study_id, "key": key, "value_json": json.dumps(value)}
                self.session.add(model(**row))

    def enrolled(self) -> int:
        """How many workers ever joined."""
        count = select(func.count()).where(tables.Worker.study_id == self._study_id)
        return self.session.scalar(count) or 0

    def workers(self, *, lock: bool = False) -> Sequence[tables.Worker]:
        """Those that have neither left nor been given up, in the order of their coming."""
        query = (
            select(tables.Worker)
            .where(tables.Worker.study_id == self._study_id)
            .where(tables.Worker.state.not_in(["ended", "lost"]))
            .order_by(tables.Worker.ordinal)
        )
        return self.session.scalars(query.with_for_update() if lock else query).all()

    def start(self, trial: Row, worker: WorkerInfo) -> Claim:
        """Makes a trial of the queue, or a new one, this worker's."""
        now, mine = self.now(), Claim(trial.trial_id, trial.number)
        trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
        self.attrs(mine.trial_id, {"owner": owner(worker), "began": now})
        held = {"trial_id": mine.trial_id, "trial": mine.number}
        self.set(worker, **held, state="training", beat=now, epoch=0)
        return mine

    def attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Writes user attributes of a trial that has not ended, all by one statement."""
        self._refuse_ended(trial_id)
        model = models.TrialUserAttributeModel
        there: Iterable[Row] = self.session.scalars(
            select(model).where(model.trial_id == trial_id, model.key.in_(attrs))
        )
        known = {row.key: row for row in there}
        for key, value in attrs.items():
            if key in known:
                known[key].value_json = json.dumps(value)
            else:
                row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
                self.session.add(model(**row))

    def draw(self, trial_id: int, drawn: Iterable[Drawn]) -> None:
        """Writes parameters that were drawn for a trial that has not ended."""
        self._refuse_ended(trial_id)
        model = models.TrialParamModel
        there = set(
            self.session.scalars(select(model.param_name).where(model.trial_id == trial_id))
        )
        for name, value, distribution, before in drawn:
            if name in there:  # only the answer got lost on its way
                continue
            if before is None:  # not known to this process: Optuna asks the other trials
                self._storage._set_trial_param_without_commit(
                    self.session, trial_id, name, value, distribution
                )
                continue
            check_distribution_compatibility(before, distribution)
            row = {"trial_id": trial_id, "param_name": name, "param_value": value}
            row["distribution_json"] = distribution_to_json(distribution)
            self.session.add(model(**row))

    def _refuse_ended(self, trial_id: int) -> None:
        trial: Row = models.TrialModel.find_or_raise_by_id(trial_id, self.session)
        self._storage.check_trial_is_updatable(trial_id, trial.state)

    def system_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Writes Optuna's own attributes of a trial that has not ended."""
        for key, value in attrs.items():
            self._storage._set_trial_attr_without_commit(
                self.session, models.TrialSystemAttributeModel, trial_id, key, value
            )

    def locked(self, trial_id: int) -> Row:
        """A trial's row, kept from others until the transaction ends."""
        return models.TrialModel.find_or_raise_by_id(trial_id, self.session, for_update=True)

    def counted(self) -> tuple[int, int]:
        """Trials with an end of their own, and trials at work."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        of_study = trial.study_id == self._study_id
        found = select(trial.state, func.count()).where(of_study).group_by(trial.state)
        by_state: dict[TrialState, int] = {}
        for state, n in self.session.execute(found):
            by_state[state] = n
        skipped = self.session.scalar(
            select(func.count())
            .select_from(trial)
            .join(attr, attr.trial_id == trial.trial_id)
            .where(of_study, attr.key == "reason")
            .where(
                attr.value_json.in_(
                    [json.dumps(reason) for reason in sorted(trial_records.CLOSED_WITHOUT_COST)]
                )
            )
            .where(trial.state.in_([TrialState.PRUNED, TrialState.FAIL]))
        )
        ended = sum(n for state, n in by_state.items() if state.is_finished())
        return ended - (skipped or 0), by_state.get(TrialState.RUNNING, 0)

    def next_waiting(self) -> Row | None:
        """The queue's first; those that were cut off before those that never began."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        again = (
            select(attr.trial_id)
            .where(
                attr.trial_id == trial.trial_id, attr.key == trial_records.TrialAttr.REQUEUED_FROM
            )
            .exists()
        )
        found: Row | None = self.session.scalars(
            select(trial)
            .where(trial.study_id == self._study_id, trial.state == TrialState.WAITING)
            .order_by(again.desc(), trial.number)
            .limit(1)
        ).first()
        return found

    def new(self) -> Row:
        """A trial that never was in the queue."""
        return self._storage._get_prepared_new_trial(self._study_id, None, self.session)

    def queue(self, params: Mapping[str, Any], attrs: Mapping[str, Any]) -> int:
        """Puts a trial into the queue; its number."""
        template = create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": dict(params)},
            user_attrs=dict(attrs),
        )
        made = self._storage._get_prepared_new_trial(self._study_id, template, self.session)
        return int(made.number)

    def twin(self, claim: Claim, digest: str) -> int | None:
        """Another trial of this configuration that is not skipped; its number."""
        trial, attr = models.TrialModel, models.TrialUserAttributeModel
        found = self.session.execute(
            select(trial.number, trial.trial_id)
            .join(attr, attr.trial_id == trial.trial_id)
            .where(trial.study_id == self._study_id, trial.trial_id != claim.trial_id)
            .where(attr.key == "digest", attr.value_json == json.dumps(digest))
            .order_by(trial.number)
        )
        return next(
            (n for n, i in found if self.reason(i) not in trial_records.CLOSED_WITHOUT_COST), None
        )

    def reason(self, trial_id: int) -> str | None:
        """Why a trial ended, if that was said."""
        model = models.TrialUserAttributeModel
        text = self.session.scalar(
            select(model.value_json).where(model.trial_id == trial_id, model.key == "reason")
        )
        return None if text is None else str(json.loads(text))

    def close(self, trial: Row, state: TrialState) -> None:
        """Ends a trial and frees whoever held it."""
        trial.state, trial.datetime_complete = state, datetime.now()
        self.session.execute(
            update(tables.Worker)
            .where(tables.Worker.trial_id == trial.trial_id)
            .where(tables.Worker.state == "training")
            .values(trial_id=None, trial=None, state="idle")
        )

    def hand_on(self, trial: Row, reason: str, ended: float) -> int | None:
        """Closes a trial and queues it again; the number it goes on under, if it does."""
        params, attrs = _params(self.session, trial), _user_attrs(self.session, trial)
        losses = attrs.get("losses", 0) + (reason == trial_records.EndReason.LOST)
        told: dict[str, Any] = {"reason": reason, "ended": ended}
        successor = None
        if losses > MAX_LOSSES:
            told |= {"reason": "crash", "message": f"its worker died with it {losses} times"}
        # One that was cut off before it drew any parameter has nothing to repeat.
        elif params or trial_records.TrialAttr.FIXED_CONFIG in attrs:
            attempts = [*attrs.get(trial_records.TrialAttr.ATTEMPTS, []), trial.number][-ATTEMPTS:]
            known = {k: v for k, v in attrs.items() if k in trial_records.QUEUE_ATTRS | {"digest"}}
            known |= {
                trial_records.TrialAttr.REQUEUED_FROM: attrs.get(
                    trial_records.TrialAttr.REQUEUED_FROM, trial.number
                )
            }
            known |= {trial_records.TrialAttr.ATTEMPTS: attempts} | (
                {"losses": losses} if losses else {}
            )
            successor = self.queue(params, known)
        self.attrs(trial.trial_id, told)
        self.close(trial, TrialState.FAIL)
        return successor

    def reap(self, grace: float, healthy: float) -> list[tuple[int, int | None]]:
        """Hands on the trials of workers that are gone or silent."""
        now = self.now()
        rows = self.workers(lock=True)
        alive: dict[int, tables.Worker] = {}
        heard: dict[int, float] = {}
        for row in rows:
            silent = now - row.beat > grace and healthy > grace
            if silent or seen(row, now).who.is_gone():
                if row.trial_id is not None:
                    heard[row.trial_id] = row.beat
                row.state, row.trial_id, row.trial = "lost", None, None
            elif row.trial_id is not None:
                alive[row.trial_id] = row
        trial = models.TrialModel
        running: Sequence[Row] = self.session.scalars(
            select(trial)
            .where(trial.study_id == self._study_id, trial.state == TrialState.RUNNING)
            .order_by(trial.number)
        ).all()
        # Nobody is half-way through a claim now: the study's row is ours.
        lost = [t for t in running if t.trial_id not in alive]
        return [
            (t.number, self.hand_on(t, trial_records.EndReason.LOST, heard.get(t.trial_id, now)))
            for t in lost
        ]


def seen(row: tables.Worker, now: float) -> WorkerInfo:
    """A worker's row as others are shown it."""
    return WorkerInfo(
        row.id,
        ProcessId(row.host, row.pid, row.since, row.space),
        Slot(row.device, row.threads, row.share, row.memory_gb),
        row.state,
        row.trial,
        row.epoch,
        max(0.0, now - row.beat),
        row.ordinal,
    )


def owner(worker: WorkerInfo) -> dict[str, Any]:
    """What a trial keeps of who trained it."""
    return {"worker": worker.id, **asdict(worker.who), **asdict(worker.slot)}


def _params(session: Session, trial: Row) -> dict[str, Any]:
    """What it drew, over what it was given in the queue and had not drawn yet."""
    system: Iterable[Row] = session.scalars(
        select(models.TrialSystemAttributeModel)
        .where(models.TrialSystemAttributeModel.trial_id == trial.trial_id)
        .where(models.TrialSystemAttributeModel.key.startswith("fixed_params"))
    )
    given: dict[str, Any] = {}
    for attr in system:
        given |= json.loads(attr.value_json)
    drawn: Iterable[Row] = session.scalars(
        select(models.TrialParamModel).where(models.TrialParamModel.trial_id == trial.trial_id)
    )
    for p in drawn:
        given[p.param_name] = json_to_distribution(p.distribution_json).to_external_repr(
            p.param_value
        )
    return given


def _user_attrs(session: Session, trial: Row) -> dict[str, Any]:
    model = models.TrialUserAttributeModel
    found: Iterable[Row] = session.scalars(select(model).where(model.trial_id == trial.trial_id))
    return {a.key: json.loads(a.value_json) for a in found}
