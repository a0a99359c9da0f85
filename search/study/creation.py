"""Create a study, or resume the one of the same folder."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from sqlalchemy.engine import URL

from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.duplicates.grouping import apply_groups
from lesionseg.data.index import DatasetIndex
from lesionseg.data.merge import Roots
from lesionseg.data.split import Split, has_official_split, make_split
from lesionseg.errors import InputError
from search.spec.loading import find_differing_keys, parse_spec
from search.spec.study_spec import DataSpec, FinalSpec, StudySpec
from search.storage.artifact_store import open_artifact_store
from search.storage.database import open_storage, sqlite_url, storage_url
from search.storage.leases import TrialLeases
from search.storage.retrying_storage import bind_storage
from search.storage.study_dir import (
    check_study_or_empty,
    check_writable,
    create_folder,
    is_study,
    lock_study,
)
from search.storage.trial_records import StudyAttr
from search.study import data_audit
from search.study.data_audit import StudyAudit, audit_study, write_audit
from search.study.data_summary import write_data_summary
from search.study.encoder_weights import choose_weights, take_stored_weights
from search.study.opening import (
    OpenStudy,
    assemble_study,
    check_data,
    load_or_recover,
    open_artifacts,
)
from search.study.queue import first_trials
from search.study.study_files import write_study_files
from search.study.suggest import ensure_space_weights

#: Called with the number of images that are cached and of all images.
Progress = Callable[[int, int], None]


def create_or_resume(
    spec: StudySpec,
    data: Roots,
    folder: Path,
    storage: str | None = None,
    artifacts: str | None = None,
    on_progress: Progress = lambda done, total: None,
) -> OpenStudy:
    """Create the study of a folder, or resume it if it exists.

    The folder's name becomes the study's name. Without ``storage`` the database is ``study.db`` in
    the folder; without ``artifacts`` weights and checkpoints are kept there, too. The input is
    checked before anything is written.

    Raises:
        InputError: If data, folder, storage or artifact store cannot be used, or a study of this
            name has another spec or other data; the message names the keys that differ.
    """
    index = DatasetIndex.read(data, spec.data.layout, invert_masks=spec.data.invert_masks)
    check_study_or_empty(folder)
    check_writable(folder)
    artifacts = _absolute_location(artifacts)
    audit: StudyAudit | None = None
    resume = is_study(folder)
    if resume:
        study, url = load_or_recover(folder, storage)
        spec = check_resumable(study, spec, index, artifacts)
    else:
        url = storage_url(storage, folder)
        _check_locations(url, folder, artifacts)
    cache = build_cache(index, spec.data.image_size, on_progress=on_progress)
    if not resume or data_audit.is_damaged(folder):
        audit = audit_study(index, cache, spec.data, official=uses_official_split(spec.data, index))
    if audit and not resume:
        split, created = _split(spec, index, cache, audit), choose_weights(spec)
        attrs = {
            StudyAttr.DATA: index.fingerprint(),
            StudyAttr.SPLIT: split.to_dict(),
            StudyAttr.GROUPS: dict(audit.groups),
            StudyAttr.ARTIFACTS: artifacts,
            StudyAttr.UUID: uuid.uuid4().hex,
            StudyAttr.SPEC: created.model_dump(mode="json"),
        }
        study = _create_study(folder, url)
        if TrialLeases(study).initialize_study(attrs, first_trials(created)):
            spec = created
        else:
            # Another host created it at the same time: its split and data are valid.
            spec = check_resumable(study, spec, index, artifacts)
            resume = True
        bind_storage(study)
    if resume:
        study.set_user_attr(StudyAttr.SPEC, spec.model_dump(mode="json"))
    create_folder(folder)
    store = open_artifacts(study, folder, claim=True)
    opened = assemble_study(study, folder, spec, index, cache, store)
    if audit:
        write_audit(folder, audit)
    write_data_summary(folder, opened.index, cache, opened.split)
    write_study_files(study, folder, url, data, index.layout)
    return opened


def _check_locations(url: URL, folder: Path, artifacts: str | None) -> None:
    """Raise InputError if the database or the artifact store cannot be used for a new study."""
    store = open_artifact_store(artifacts, folder)
    if url == sqlite_url(folder) and not (folder / "study.db").exists():
        store.check_not_foreign()  # no other host can have created this study
    if url.get_backend_name() != "sqlite":
        open_storage(url)


def _absolute_location(artifacts: str | None) -> str | None:
    """Make a path absolute, as workers have other working directories."""
    if artifacts is None or ":/" in artifacts:
        return artifacts
    return str(Path(artifacts).expanduser().resolve())


def uses_official_split(data: DataSpec, index: DatasetIndex) -> bool:
    """Return whether the images are split as the data set defines it."""
    mode = data.split.mode
    return mode == "official" or (mode == "auto" and has_official_split(index.records))


def _split(spec: StudySpec, index: DatasetIndex, cache: Cache, audit: StudyAudit) -> Split:
    options = spec.data.split
    records = apply_groups(index.records, audit.groups)
    used = [i for i, record in enumerate(records) if record.name not in audit.excluded]
    return make_split(
        [records[i] for i in used],
        cache.areas[used],
        options.shares,
        seed=options.seed,
        official=uses_official_split(spec.data, index),
        limits=spec.data.limit.model_dump(),
        kfold=options.kfold,
    )


def _create_study(folder: Path, url: URL) -> optuna.Study:
    if url == sqlite_url(folder):
        create_folder(folder)  # for another storage only after that was opened
    return optuna.create_study(
        study_name=folder.resolve().name,  # the name of "." too
        storage=open_storage(url),
        direction=StudyDirection.MAXIMIZE,
        load_if_exists=True,
    )


@contextmanager
def lock_and_open(
    spec: StudySpec, data: Roots, folder: Path, **options: Any
) -> Iterator[OpenStudy]:
    """Create or resume a study as ``create_or_resume`` does, and hold the lock of its folder.

    An existing study is locked first, so that the spec of a running search does not change.
    """
    exists = is_study(folder)
    with lock_study(folder) if exists else nullcontext():
        opened = create_or_resume(spec, data, folder, **options)
        with nullcontext() if exists else lock_study(folder):
            yield opened


_LIMITS = ("trials", "hours", "total_hours", "gpu_hours", "trial_minutes", "stall_minutes")
#: Keys that may differ when a study is resumed, as no trial depends on them.
RESUMABLE_KEYS = frozenset(
    [*(f"budget.{key}" for key in _LIMITS), *(f"final.{key}" for key in FinalSpec.model_fields)]
)


def check_resumable(
    study: optuna.Study, spec: StudySpec, index: DatasetIndex, artifacts: str | None
) -> StudySpec:
    """Return the spec to resume a study with: the given one, with the study's encoder weights.

    Raises:
        InputError: If the study cannot be resumed with this spec, data and artifact store, or the
            weights of its encoders are missing here.
    """
    stored = _update_spec(study.user_attrs[StudyAttr.SPEC])
    spec = take_stored_weights(spec, stored)
    keys = find_differing_keys(stored, spec.model_dump(mode="json"))
    keys = [key for key in keys if key not in RESUMABLE_KEYS]
    if keys:
        raise InputError(
            f"study {study.study_name!r} exists with another spec: {', '.join(keys)} differ; "
            f"restore the old values, or start a new study with another --out"
        )
    check_data(study, index)
    location = study.user_attrs.get(StudyAttr.ARTIFACTS)
    if artifacts not in (None, location):
        raise InputError(
            f"--artifacts: study {study.study_name!r} keeps its checkpoints in "
            f"{location or 'its own folder'}, got {artifacts}; leave the option out"
        )
    ensure_space_weights(spec.space)
    return spec


def _update_spec(stored: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of keys that are newer than the stored spec."""
    try:
        return parse_spec(stored, "the stored spec").model_dump(mode="json")
    except InputError:  # a key or an option was removed: report the difference as it is
        return stored
