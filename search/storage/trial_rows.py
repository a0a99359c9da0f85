"""A storage whose trials are read as plain rows: of thousands in seconds rather than half a minute.

Optuna makes whole objects of every row, and a study of 5,000 trials has half a million of them. It
reads the same: what is written, and what is asked of single trials, goes Optuna's own way.

The names with an underscore that are used here are Optuna 5's; tests hold them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, or_, select
from sqlalchemy.engine import URL

from search.storage.optuna_internals import models
from search.storage.retrying_storage import RetryingStorage, local_time
from search.study.transfer_rows import distribution

# Any: the columns of Optuna's tables are declared in a way that select's types do not know.
_TRIAL: Any = models.TrialModel
_VALUE: Any = models.TrialValueModel
_PARAM: Any = models.TrialParamModel
_USER: Any = models.TrialUserAttributeModel
_SYSTEM: Any = models.TrialSystemAttributeModel
_STEP: Any = models.TrialIntermediateValueModel

#: More ids than this are not put into a question: databases have limits.
MANY = 500


class RowStorage(RetryingStorage):
    """For looking: on SQLite it takes no lock that would keep anybody else waiting."""

    @classmethod
    def beside(cls, other: RetryingStorage) -> RowStorage:
        """A storage of its own connections to the same database."""
        url: URL = other.engine.url
        lite = url.get_backend_name() == "sqlite"
        settings: dict[str, Any] = {"connect_args": {"timeout": 60}} if lite else {}
        made = cls(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, **settings},
            skip_table_creation=True,
        )
        made.hide = other.hide
        return made

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        few = len(included_trial_ids) <= MANY
        since = trial_id_greater_than if few else min(included_trial_ids) - 1
        wanted = _TRIAL.trial_id > since
        if few and included_trial_ids:
            wanted = or_(wanted, _TRIAL.trial_id.in_(included_trial_ids))
        where = (_TRIAL.study_id == study_id) & wanted

        def read() -> list[FrozenTrial]:
            with self.engine.connect() as connection:
                return _read(connection, where)

        found = self.retry_transient(read)
        return [
            t
            for t in found
            if (states is None or t.state in states)
            and (t._trial_id > trial_id_greater_than or t._trial_id in included_trial_ids)
        ]


def _read(connection: Connection, where: ColumnElement[bool]) -> list[FrozenTrial]:
    trial = _TRIAL.__table__
    rows = connection.execute(select(trial).where(where).order_by(trial.c.trial_id)).all()

    def of(model: Any, *columns: Any) -> dict[int, list[Any]]:
        query = select(model.trial_id, *columns).join(_TRIAL, _TRIAL.trial_id == model.trial_id)
        ordered = query.where(where).order_by(*model.__table__.primary_key.columns)
        found: dict[int, list[Any]] = defaultdict(list)
        for row in connection.execute(ordered):
            found[row[0]].append(row[1:])
        return found

    values = of(_VALUE, _VALUE.objective, _VALUE.value, _VALUE.value_type)
    params = of(_PARAM, _PARAM.param_name, _PARAM.param_value, _PARAM.distribution_json)
    users = of(_USER, _USER.key, _USER.value_json)
    systems = of(_SYSTEM, _SYSTEM.key, _SYSTEM.value_json)
    kept = (_STEP.step, _STEP.intermediate_value, _STEP.intermediate_value_type)
    steps = of(_STEP, *kept)
    made = []
    for row in rows:
        i = row.trial_id
        kinds = {name: distribution(text) for name, _, text in params[i]}
        made.append(
            FrozenTrial(
                number=row.number,
                trial_id=i,
                state=row.state,
                value=None,
                values=_values(values[i]),
                datetime_start=local_time(row.datetime_start),
                datetime_complete=local_time(row.datetime_complete),
                params={name: kinds[name].to_external_repr(v) for name, v, _ in params[i]},
                distributions=kinds,
                user_attrs={key: json.loads(text) for key, text in users[i]},
                system_attrs={key: json.loads(text) for key, text in systems[i]},
                intermediate_values={
                    at: _STEP.stored_repr_to_intermediate_value(v, kind) for at, v, kind in steps[i]
                },
            )
        )
    return made


def _values(rows: Sequence[Any]) -> list[float] | None:
    told = sorted((place, _VALUE.stored_repr_to_value(v, kind)) for place, v, kind in rows)
    return [value for _, value in told] or None
