"""Open existing studies: from a folder, or from a shared storage."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from sqlalchemy import update
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.duplicates.grouping import apply_groups
from lesionseg.data.index import DatasetIndex
from lesionseg.data.merge import Roots
from lesionseg.data.pairs import SPLITS, escape_unprintable
from lesionseg.data.split import Split, find_positions
from lesionseg.errors import InputError, format_some
from search.spec.loading import parse_spec
from search.spec.study_spec import StudySpec
from search.storage.artifact_store import ArtifactStore, open_artifact_store
from search.storage.database import (
    STORAGE_VARIABLE,
    mask_password,
    open_storage,
    sqlite_url,
    storage_from_environment,
    storage_url,
)
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import models, study_id
from search.storage.retrying_storage import backend_of, bind_storage, retry_transient
from search.storage.study_dir import create_folder, is_study, read_run_info
from search.storage.study_rows import StudyRows
from search.storage.transient_errors import STORAGE_ERRORS, describe_error
from search.storage.trial_records import StudyAttr
from search.study.data_summary import write_data_summary
from search.study.location import StudyLocation
from search.study.study_files import recorded_roots, write_study_files

#: Seconds that ``check_storage_writable`` waits for an unavailable database.
CHECK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class TrialData:
    """Positions of a study's images in their cache.

    cache: path of the cache.
    train, val: of the training; with a cross-validation, of its first fold.
    folds: train and val of each fold; empty without a cross-validation.
    """

    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    folds: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...] = ()

    @property
    def trainings(self) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
        """Train and val of each training of a trial."""
        return self.folds or ((self.train, self.val),)

    @property
    def train_val(self) -> NDArray[np.int64]:
        """All images of train and val, over all folds."""
        if not self.folds:
            return np.concatenate([self.train, self.val])
        return np.unique(np.concatenate([part for fold in self.folds for part in fold]))


@dataclass(frozen=True)
class OpenStudy:
    """A study with its data, split and artifact store.

    index: the records with groups merged by near-duplicates. read_index: the records as read; the
    study's fingerprint is computed from these.
    """

    folder: Path
    spec: StudySpec
    index: DatasetIndex
    read_index: DatasetIndex
    cache: Cache
    split: Split
    study: optuna.Study
    artifact_store: ArtifactStore

    @property
    def name(self) -> str:
        """The name of the study in its storage."""
        return self.study.study_name

    @property
    def trial_data(self) -> TrialData:
        """The images that trials train on and are validated with."""
        names = self.cache.names
        folds = [
            (find_positions(f.train, names), find_positions(f.val, names)) for f in self.split.folds
        ]
        train, val = find_positions(self.split.train, names), find_positions(self.split.val, names)
        return TrialData(self.cache.path, train, val, tuple(folds))

    def describe_error(self, error: Exception) -> str:
        """Return the database's message of an error that is not transient, in one line."""
        return f"storage: {describe_error(error, backend_of(self.study).redact)}"


def open_study(folder: Path, *, storage: str | None = None, data: Roots | None = None) -> OpenStudy:
    """Open the study of a folder; storage and data: None for the recorded ones.

    Raises:
        InputError: If the folder holds no study, or the data differ from the study's.
    """
    study = load_study(folder, storage=storage)
    return _open(study, folder, data or recorded_roots(read_run_info(folder)))


def join_study(location: StudyLocation) -> OpenStudy:
    """Open a study for a worker on any host: by its folder, or by its name in the storage.

    Raises:
        InputError: If there is no such study, its data differ, or its artifact store is not
            available on this host.
    """
    folder, data = location.folder, location.data
    if is_study(folder):
        return open_study(folder, storage=location.storage, data=data)
    study = find_study(location.name, folder, location.storage)
    url = storage_url(location.storage, folder)
    if StudyAttr.SPEC not in study.user_attrs:
        masked = mask_password(url)
        raise InputError(f"{masked}: study {location.name!r} was not created by lesionsearch")
    if data is None:
        raise InputError("--data: give the folder of the images on this host")
    opened = _open(study, folder, data)
    create_folder(folder)
    write_data_summary(folder, opened.index, opened.cache, opened.split)
    write_study_files(study, folder, url, data, opened.index.layout)
    return opened


def find_study(name: str, folder: Path, storage: str | None) -> optuna.Study:
    """Load the Optuna study of a folder or, if it holds none, of a name in the storage."""
    if is_study(folder):
        return load_study(folder, storage=storage)
    if not (storage or storage_from_environment()):
        raise InputError(
            f"{folder}: no study here, and no --storage to look for it in; give the database's "
            f"URL, or the study's folder as --out"
        )
    url = storage_url(storage, folder)
    return _load(url, name, f"{mask_password(url)} holds no study {name!r}; check the name")


def load_study(folder: Path, *, storage: str | None = None) -> optuna.Study:
    """Load the Optuna study of a folder without its images; raises InputError without a study."""
    info, url = read_run_info(folder), recorded_url(folder, storage)
    name, masked = info["study"], mask_password(url)
    remedy = "Restore the database, or start a new study in another folder with --out"
    study = _load(
        url,
        name,
        f"{folder}: {masked} holds no study {name!r}; it may have been moved or deleted. {remedy}",
    )
    if info.get("uuid") not in {None, study.user_attrs.get(StudyAttr.UUID)}:
        raise InputError(
            f"{folder}: its study {name!r} was deleted; {masked} holds another study of this name. "
            f"{remedy}"
        )
    return study


def load_or_recover(folder: Path, storage: str | None) -> tuple[optuna.Study, URL]:
    """Load the Optuna study of a folder; return it and the URL of its database.

    If run.json is damaged, the study is found by the folder's name.
    """
    try:
        read_run_info(folder)
    except InputError as error:
        name, url = folder.resolve().name, storage_url(storage, folder)
        missing = f"{error}, if the folder has the name of the study: {mask_password(url)} holds "
        return _load(url, name, f"{missing}no study {name!r}"), url
    return load_study(folder, storage=storage), recorded_url(folder, storage)


def recorded_url(folder: Path, storage: str | None) -> URL:
    """Return the URL of an existing study's database: ``storage``, or the one in run.json.

    The environment is used for a missing password only: it must not name another database.
    """
    recorded = read_run_info(folder)["storage"]
    if storage is None and recorded is None:
        return sqlite_url(folder)
    if storage is None and recorded and "***" in recorded:
        storage = os.environ.get(STORAGE_VARIABLE)
        if not storage:
            raise InputError(
                f"storage: the study is in {recorded}, whose password is not stored; "
                f"give --storage or set {STORAGE_VARIABLE}"
            )
    try:
        return storage_url(storage or recorded, folder)
    except InputError as error:
        where = "" if storage else f"{folder / 'run.json'}: "
        raise InputError(f"{where}{error}") from None


def open_artifacts(study: optuna.Study, folder: Path, *, claim: bool) -> ArtifactStore:
    """Open a study's artifact store; claim: whether to mark an unmarked store as this study's.

    Raises:
        InputError: If the store belongs to another study or is not available on this host.
    """
    attrs = study.user_attrs
    store = open_artifact_store(attrs.get(StudyAttr.ARTIFACTS), folder, study.study_name)
    (store.claim_marker if claim else store.check_marker)(attrs[StudyAttr.UUID])
    return store


def assemble_study(
    study: optuna.Study, folder: Path, spec: StudySpec, index: DatasetIndex, cache: Cache,
    store: ArtifactStore,
) -> OpenStudy:  # fmt: skip
    """Return a study with its data, and the split and the groups that it was created with."""
    split = Split.from_dict(study.user_attrs[StudyAttr.SPLIT])
    groups = study.user_attrs.get(StudyAttr.GROUPS, {})
    records = apply_groups(cache.apply_readings(index.records), groups)
    merged = replace(index, records=records)
    return OpenStudy(folder, spec, merged, index, cache, split, study, store)


def check_data(study: optuna.Study, index: DatasetIndex) -> None:
    """Raise InputError if the data are not those that a study was created with."""
    fingerprint = study.user_attrs[StudyAttr.DATA]
    if fingerprint != index.fingerprint():
        split = study.user_attrs[StudyAttr.SPLIT]
        used = {name for part in SPLITS for name in split[part]}
        gone = sorted(map(escape_unprintable, used - {record.name for record in index.records}))
        missing = f"; {len(gone)} of its images are missing: {format_some(gone)}" if gone else ""
        raise InputError(
            f"study {study.study_name!r} was run on other data (fingerprint {fingerprint}, now "
            f"{index.fingerprint()}){missing}; give the same folders, or start a new study with "
            f"another --out"
        )


def _open(study: optuna.Study, folder: Path, data: Roots) -> OpenStudy:
    spec = parse_spec(study.user_attrs[StudyAttr.SPEC], f"study {study.study_name!r}")
    index = DatasetIndex.read(data, spec.data.layout, invert_masks=spec.data.invert_masks)
    check_data(study, index)
    store = open_artifacts(study, folder, claim=False)
    cache = build_cache(index, spec.data.image_size)
    return assemble_study(study, folder, spec, index, cache, store)


def is_missing_file(url: URL) -> bool:
    """Return whether a database is a file that does not exist; opening would create it."""
    return url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file()


def _load(url: URL, name: str, missing: str) -> optuna.Study:
    if is_missing_file(url):
        raise InputError(missing)
    try:
        return bind_storage(optuna.load_study(study_name=name, storage=open_storage(url)))
    except (KeyError, NoResultFound):  # NoResultFound: deleted just now
        raise InputError(missing) from None


def check_storage_writable(study: optuna.Study) -> None:
    """Raise InputError if a study's database cannot be written."""
    backend, model = backend_of(study), models.StudyModel
    rename = update(model).where(model.study_id == study_id(study))

    def attempt() -> None:
        with Session(backend.engine) as session:  # which is not committed
            session.execute(rename.values(study_name=study.study_name))

    try:
        retry_transient(attempt, timeout_s=CHECK_TIMEOUT_S, redact=backend.redact)
    except STORAGE_ERRORS as error:
        raise InputError(f"storage: {describe_error(error, backend.redact)}") from None


def list_test_evaluations(study: optuna.Study) -> list[str]:
    """Return the times of all test evaluations, ISO 8601 in UTC."""
    return list(study.user_attrs.get(StudyAttr.TEST_EVALUATIONS, []))


def record_test_evaluation(study: optuna.Study) -> int:
    """Record a test evaluation that gave scores, before they are shown; return how many."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    counts: list[int] = []  # of this time, by attempt; an acknowledgement may be lost

    def attempt(rows: StudyRows) -> int:
        times = rows.study_attr(StudyAttr.TEST_EVALUATIONS, [])
        counts.append(times.count(now))
        if counts[-1] == counts[0]:
            times = [*times, now]
            rows.set_study_attrs({StudyAttr.TEST_EVALUATIONS: times})
        return len(times)

    return TrialLeases(study).run(attempt)
