"""A study as a text file, and back: JSON lines for any program, CSV for spreadsheets.

The first line says what the file is and holds the study's attributes; then comes one line a
trial, by number. The JSON is strict: what JSON has no number for is ``{"$float": "nan"}``.
Storage URLs and workers are no part of it; neither are weights and checkpoints.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, TextIO

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy import select
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lesionseg.config import DEFAULTS, SETTINGS
from lesionseg.errors import InputError
from search.storage import trial_records
from search.storage.bulk_insert import insert_study, renumber_notes
from search.storage.database import mask_password, open_storage
from search.storage.lease_transaction import LeaseTransaction
from search.storage.optuna_internals import models, study_id, trial_id
from search.storage.queries import read_study
from search.storage.retrying_storage import backend_of
from search.study.transfer_lines import FORMAT, read_lines, safe, trial_line

#: What a table tells of each trial before its configuration.
COLUMNS = ("number", "state", "reason", "value", "epochs", "seconds", "baseline")

#: A study's user attributes, its system attributes, and its trials.
_Read = tuple[dict[str, Any], dict[str, Any], list[FrozenTrial]]


def export_study(study: optuna.Study, file: TextIO) -> int:
    """Writes a study as JSON lines; how many trials it wrote. The study is only read."""
    user_attrs, system_attrs, trials = _read(study)
    head = {
        "format": FORMAT,
        "study": study.study_name,
        "direction": study.direction.name.lower(),
        "trials": len(trials),
        "user_attrs": user_attrs,
        "system_attrs": renumber_notes(system_attrs, {trial_id(t): t.number for t in trials}),
        "optuna": optuna.__version__,
        "lesionsearch": version("lesionsearch"),
        "exported": datetime.now(timezone.utc).isoformat(),
    }
    for line in [head, *map(trial_line, trials)]:
        file.write(json.dumps(safe(line), allow_nan=False) + "\n")
    return len(trials)


def import_study(lines: Iterable[str], url: URL, name: str | None, source: str) -> optuna.Study:
    """Makes a new study of an exported one's lines, in one transaction; every field is the same.

    But trials that were at work are closed as interrupted when they were exported, and queued
    again: none of their workers comes along.

    url: the database (``search.storage.database.storage_url``). name: of the new study, None for the name
    it had. source: what the lines are called in messages.
    Raises InputError, nothing having been written: lines that are damaged, cut off or of something
    else, the line's number being named; a database that cannot be used; a name that is taken.
    """
    head, known = read_lines(lines, source)
    name = head.study if name is None else name
    if not 0 < len(name) <= models.MAX_INDEXED_STRING_LENGTH or not name.isprintable():
        raise InputError(f"{source}: {name!r} cannot be a study's name; give another one")
    storage = open_storage(url)
    made: list[int] = []

    def once() -> None:
        storage.forget_unacknowledged(made)
        with Session(storage.engine) as session, session.begin():
            study = models.StudyModel
            there = session.scalar(select(study.study_id).where(study.study_name == name))
            if there is None:
                made.append(insert_study(session, name, head.user_attrs, head.system_attrs, known))
                _requeue_running(LeaseTransaction(storage, made[-1], session), head.exported)
            elif there not in made:  # or it is this very import, whose acknowledgement was lost
                raise _taken(name, url, source)

    try:
        storage.retry_transient(once)
    except IntegrityError:
        if name in optuna.get_all_study_names(storage):  # somebody made it meanwhile
            raise _taken(name, url, source) from None
        raise
    return optuna.load_study(study_name=name, storage=storage)


def write_csv(study: optuna.Study, file: TextIO) -> int:
    """Writes a study as a table, a row a trial; how many trials it wrote.

    The columns are COLUMNS and the configuration's under the dotted names of ``search.study.suggest``,
    empty where a trial has none; ``max_epochs`` is the configuration's. state: ``trials.STATES``.
    value: the best validation Dice. epochs: that were trained. file: opened with ``newline=""``.
    """
    *_, trials = _read(study)  # Optuna's own way takes minutes for thousands of trials
    rows = [_row(trial) for trial in trials]
    said = {key for row in rows for key in row} - set(COLUMNS)
    common = [key for key in (*DEFAULTS, *SETTINGS) if key in said]
    columns = [*COLUMNS, *common, *sorted(said - set(common))]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return len(rows)


# --- the database ----------------------------------------------------------------------------


def _read(study: optuna.Study) -> _Read:
    """The study as it is at one moment, whatever its workers write meanwhile."""
    storage = backend_of(study)
    engine = storage.engine
    if engine.name != "sqlite":  # where a transaction keeps writers out
        engine = engine.execution_options(isolation_level="REPEATABLE READ")

    def once() -> _Read:
        with Session(engine) as session, session.begin():
            return read_study(session, study_id(study))

    found: _Read = storage.retry_transient(once)
    return found


def _taken(name: str, url: URL, source: str) -> InputError:
    return InputError(
        f"{source}: {mask_password(url)} holds a study {name!r} already; give the new one another name"
    )


def _requeue_running(rows: LeaseTransaction, exported_at: float) -> None:
    """Requeue the trials that were running when the study was exported."""
    for trial in rows.running_trials():
        rows.requeue(trial, trial_records.EndReason.INTERRUPTED, exported_at)


# --- a table for people --------------------------------------------------------------------------


def _row(trial: FrozenTrial) -> dict[str, Any]:
    began = trial.datetime_start is not None
    return {
        "number": trial.number,
        "state": trial_records.state_of(trial),
        "reason": trial_records.reason_of(trial),
        "value": trial.value,
        "epochs": len(trial.intermediate_values),
        "seconds": round(trial_records.hours_spent([trial]) * 3600, 3) if began else None,
        "baseline": trial.user_attrs.get(trial_records.TrialAttr.BASELINE),
        **_flattened(trial),
    }


def _flattened(trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    config: Mapping[str, Any] | None = attrs.get(
        "config", attrs.get(trial_records.TrialAttr.FIXED_CONFIG)
    )
    if config is None:  # it did not begin: what it was queued with is all there is
        queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {}) | trial.params
        return queued
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key not in DEFAULTS:
            flat["max_epochs" if key == "epochs" else key] = value
            continue
        ((flat[key], params),) = value.items()
        flat |= {f"{key}.{flat[key]}.{name}": v for name, v in params.items()}
    return flat
