"""All trials of a study, as much of them as its standing needs; quick for thousands.

Optuna makes whole objects of every row: parameters, distributions, every epoch's value. Of 5,000
trials that takes many seconds. Here plain rows are read, and of a trial that has ended only once.
The names with an underscore that are used here are Optuna 5's; tests hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, select

from search.storage import trial_records
from search.storage.optuna_internals import models
from search.storage.retrying_storage import backend_of, local_time

#: User attributes that are read of every trial.
READ = (
    "reason",
    "owner",
    "began",
    "ended",
    trial_records.TrialAttr.REQUEUED_FROM,
    trial_records.TrialAttr.BASELINE,
)

# Any: the columns of Optuna's tables are declared in a way that select's types do not know.
_TRIAL: Any = models.TrialModel
_VALUE: Any = models.TrialValueModel
_ATTR: Any = models.TrialUserAttributeModel
_STEP: Any = models.TrialIntermediateValueModel


class TrialReader:
    """Looks at one study's trials again and again."""

    def __init__(self, study: optuna.Study) -> None:
        self.study_id = study._study_id
        self.storage = backend_of(study)
        self.ended: dict[int, FrozenTrial] = {}
        self.since = 0

    def look(self) -> list[FrozenTrial]:
        """Every trial, by number, with its state, value, times and the attributes READ.

        There are no parameters; values by epoch are of trials at work alone, and so are ``config``
        and ``folds``, which the best trial has too. Raises as the storage does.
        """
        found = self.storage.retry_transient(self._read)
        self.ended |= {t._trial_id: t for t in found if t.state.is_finished()}
        at_work = [t._trial_id for t in found if not t.state.is_finished()]
        # Ids rise: what is below the first that has not ended has ended.
        self.since = min(at_work, default=max(self.ended, default=-1) + 1)
        known = self.ended | {t._trial_id: t for t in found}
        ordered = sorted(known.values(), key=lambda t: t.number)
        if best := trial_records.rank_trials(ordered)[:1]:
            self._give_config(best[0])
        return ordered

    def _read(self) -> list[FrozenTrial]:
        of_ours = (_TRIAL.study_id == self.study_id) & (_TRIAL.trial_id >= self.since)
        whole = select(
            _TRIAL.trial_id, _TRIAL.number, _TRIAL.state, _TRIAL._datetime_start_utc,
            _TRIAL._datetime_complete_utc,
        )  # fmt: skip
        with self.storage.engine.connect() as connection:
            rows = connection.execute(whole.where(of_ours)).all()
            attrs = _grouped(
                connection.execute(
                    select(_ATTR.trial_id, _ATTR.key, _ATTR.value_json)
                    .join(_TRIAL, _TRIAL.trial_id == _ATTR.trial_id)
                    .where(of_ours & _ATTR.key.in_(READ))
                )
            )
            values = connection.execute(
                select(_VALUE.trial_id, _VALUE.value, _VALUE.value_type)
                .join(_TRIAL, _TRIAL.trial_id == _VALUE.trial_id)
                .where(of_ours & (_VALUE.objective == 0))
            )
            told = {i: _VALUE.stored_repr_to_value(v, kind) for i, v, kind in values}
            at_work = [row.trial_id for row in rows if not row.state.is_finished()]
            steps = _steps(connection, at_work)
            configs = _configs(connection, at_work)
        return [
            FrozenTrial(
                number=row.number,
                state=row.state,
                value=told.get(row.trial_id) if row.state == TrialState.COMPLETE else None,
                datetime_start=local_time(row.datetime_start),
                datetime_complete=local_time(row.datetime_complete),
                params={},
                distributions={},
                user_attrs=attrs.get(row.trial_id, {}) | configs.get(row.trial_id, {}),
                system_attrs={},
                intermediate_values=steps.get(row.trial_id, {}),
                trial_id=row.trial_id,
            )
            for row in rows
        ]

    def _give_config(self, trial: FrozenTrial) -> None:
        if "config" in trial.user_attrs:
            return

        def read() -> dict[int, dict[str, Any]]:
            with self.storage.engine.connect() as connection:
                return _configs(connection, [trial._trial_id])

        found = self.storage.retry_transient(read)
        trial.user_attrs = trial.user_attrs | found.get(trial._trial_id, {})


def _grouped(rows: Iterable[Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, value in rows:
        found.setdefault(trial_id, {})[key] = json.loads(value)
    return found


def _configs(connection: Connection, of: Sequence[int]) -> dict[int, dict[str, Any]]:
    wanted = _ATTR.trial_id.in_(of) & _ATTR.key.in_(("config", trial_records.TrialAttr.FOLDS))
    return _grouped(
        connection.execute(select(_ATTR.trial_id, _ATTR.key, _ATTR.value_json).where(wanted))
    )


def _steps(connection: Connection, of: Sequence[int]) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    rows = connection.execute(
        select(
            _STEP.trial_id, _STEP.step, _STEP.intermediate_value, _STEP.intermediate_value_type
        ).where(_STEP.trial_id.in_(of))
    )
    for trial_id, step, value, kind in rows:
        found.setdefault(trial_id, {})[step] = _STEP.stored_repr_to_intermediate_value(value, kind)
    return found
