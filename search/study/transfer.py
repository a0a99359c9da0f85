"""Export studies as JSON lines or as a CSV table, and import them into any database.

An export holds a study's attributes and trials, but no storage URL, workers or weights.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NotRequired, TextIO

import optuna
from optuna.trial import FrozenTrial
from pydantic import Field
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from lesionseg.config import DEFAULT_COMPONENTS, SETTINGS
from lesionseg.data.merge import Roots
from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_path
from search.spec.loading import parse_spec
from search.storage import training_time, trial_records
from search.storage.database import mask_password, open_storage, sqlite_url, storage_url
from search.storage.note_attrs import renumber_notes
from search.storage.optuna_internals import storage_of, study_id, trial_id
from search.storage.queries import insert_study
from search.storage.stored_files import Name, check_content
from search.storage.study_dir import (
    check_study_or_empty,
    check_writable,
    create_folder,
    default_folder,
    is_study,
)
from search.storage.study_rows import StudyRows
from search.storage.trial_records import EndReason, TrialAttr
from search.study.export_format import FORMAT, StudyLine, format_line, read_lines, trial_fields
from search.study.opening import open_artifacts
from search.study.queue import flatten_config
from search.study.study_files import write_study_files


def export_study(study: optuna.Study, file: TextIO) -> int:
    """Write a study as JSON lines (``search.study.export_format``); return the number of trials."""
    user_attrs = study.user_attrs
    system_attrs = storage_of(study).get_study_system_attrs(study_id(study))
    trials = trial_records.all_trials(study)
    study_fields = {
        "format": FORMAT,
        "study": study.study_name,
        "direction": study.direction.name.lower(),
        "trials": len(trials),
        "user_attrs": user_attrs,
        "system_attrs": renumber_notes(system_attrs, {trial_id(t): t.number for t in trials}),
        "optuna": optuna.__version__,
        "lesionsearch": version("lesionsearch"),
        "exported": datetime.now(timezone.utc),
    }
    for fields in (study_fields, *map(trial_fields, trials)):
        file.write(format_line(fields))
    return len(trials)


def export_to_file(
    study: optuna.Study, path: Path | None, write: Callable[[optuna.Study, TextIO], int]
) -> None:
    """Write a study to a complete file, or to standard output; raises InputError on failure."""
    if path is None:
        write(study, sys.stdout)
        return
    try:
        with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            write(study, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


class StoredSplit(TypedDict):
    """As ``lesionseg.data.split.Split.to_dict``."""

    train: list[Name]
    val: list[Name]
    test: list[Name]
    folds: NotRequired[list[list[Name]]]
    fold_trains: NotRequired[list[list[Name]]]


class StudyAttrs(TypedDict):
    """User attributes of a study that other parts of the program rely on; see ``StudyAttr``."""

    spec: dict[str, Any]
    data: str
    split: StoredSplit
    uuid: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    groups: NotRequired[dict[Name, Name]]
    artifacts: NotRequired[str | None]
    test_evaluations: NotRequired[list[str]]


def check_study_attrs(head: StudyLine, source: str) -> None:
    """Raise InputError if a study's attributes are not those of a study of this project."""
    where = f"{source}: line 1: user_attrs"
    attrs = check_content(where, head.user_attrs, StudyAttrs, "export the study again")
    parse_spec(attrs["spec"], source)


def import_from_file(path: Path, out: Path | None, storage: str | None, data: Roots | None) -> Path:
    """Create a study from an exported file and return its folder, ``out`` or ``runs/<name>``.

    Raises:
        InputError: If the file is not a valid export, or the folder or the storage has the study.
    """
    try:
        with path.open("rb") as lines:
            head, trials = read_lines(lines, str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    check_study_attrs(head, str(path))
    folder = out or default_folder(head.study, f"{path}: line 1: study")
    if is_study(folder):
        raise InputError(f"--out: {folder} holds a study already; give a new folder")
    check_study_or_empty(folder)
    check_writable(folder)
    url = storage_url(storage, folder)
    if url == sqlite_url(folder):
        create_folder(folder)  # for another storage only after that was opened
    study = insert_exported(head, trials, url, folder.resolve().name)
    create_folder(folder)
    open_artifacts(study, folder, claim=True)
    write_study_files(study, folder, url, data)
    return folder


def insert_exported(
    head: StudyLine, trials: Sequence[FrozenTrial], url: URL, name: str
) -> optuna.Study:
    """Create a study from the lines of a file, in one transaction.

    Every field is the same, except that trials that were running are closed as interrupted at the
    time of the export and requeued.

    Raises:
        InputError: If the database cannot be used or has a study of this name. Nothing has been
            written then.
    """
    storage = open_storage(url)
    ids: list[int] = []  # of this import; more than one after a lost connection

    def insert() -> None:
        with Session(storage.engine) as session, session.begin():
            ids.append(insert_study(session, name, head.user_attrs, head.system_attrs, trials))
            rows = StudyRows(storage, ids[-1], session)
            for trial in rows.running_trials():
                rows.requeue(trial, EndReason.INTERRUPTED, head.exported.timestamp())

    try:
        storage.retry_transient(insert)
    except IntegrityError:
        if name not in optuna.get_all_study_names(storage):
            raise
        if storage.get_study_id_from_name(name) not in ids:
            raise InputError(
                f"storage: {mask_password(url)} holds a study {name!r} already; give another --out"
            ) from None
    return optuna.load_study(study_name=name, storage=storage)


#: The columns before those of the configuration.
COLUMNS = ("number", "state", "reason", "value", "epochs", "seconds", "baseline")


def write_csv(study: optuna.Study, file: TextIO) -> int:
    """Write one row per trial; return the number of trials.

    The columns are COLUMNS and the configuration's, named as in ``search.study.suggest`` and empty
    if a trial has no value.

    Args:
        study: The study.
        file: A text file opened with ``newline=""``.
    """
    rows = [_trial_row(trial) for trial in trial_records.all_trials(study)]
    keys = {key for row in rows for key in row} - set(COLUMNS)
    common = [key for key in (*DEFAULT_COMPONENTS, *SETTINGS) if key in keys]
    columns = [*COLUMNS, *common, *sorted(keys - set(common))]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return len(rows)


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    seconds = training_time.seconds_of(trial)
    return {
        "number": trial.number,
        "state": trial_records.state_of(trial),
        "reason": trial_records.reason_of(trial),
        "value": trial.value,
        "epochs": trial_records.epochs_trained(trial),
        "seconds": None if seconds is None else round(seconds, 3),
        "baseline": trial.user_attrs.get(TrialAttr.BASELINE),
        **_flatten_config(trial),
    }


def _flatten_config(trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    config = attrs.get("config", attrs.get(TrialAttr.FIXED_CONFIG))
    if config is None:  # not started: the parameters that it was queued with
        queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {}) | trial.params
        return queued
    flat = flatten_config(config)
    flat["max_epochs"] = flat.pop("epochs")
    return flat
