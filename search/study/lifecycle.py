"""A study and its folder: created, opened again, refused where it is not the same any more.

``runs/<name>/`` holds study.yaml (the spec as it was run), run.json (where its data and its
storage are), split.json, data.json, audit.json, study.db unless the storage is elsewhere,
trials/<n>/, final/ and report.html. What workers must agree on (spec, data, split, groups) lies in
the storage itself; the folder's copies are for people.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from sqlalchemy.engine import URL

from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.duplicates.grouping import apply_groups
from lesionseg.data.index import DatasetIndex
from lesionseg.data.sets import Roots, each_root, placed
from lesionseg.data.split import Split, has_official, make_split, positions
from lesionseg.errors import InputError
from search.spec.loading import find_differing_keys, parse_spec
from search.spec.study_spec import StudySpec
from search.storage import trial_records
from search.storage.artifact_store import ArtifactStore, open_artifact_store
from search.storage.database import (
    STORAGE_FILE_VARIABLE,
    STORAGE_VARIABLE,
    mask_password,
    open_storage,
    sqlite_url,
    storage_url,
)
from search.storage.leases import TrialLeases
from search.storage.retrying_storage import RetryingStorage, backend_of
from search.storage.study_dir import (
    check_study_or_empty,
    check_writable,
    create_folder,
    is_study,
    put,
    read_run_info,
)
from search.study import data_summary, warm_start
from search.study.cross_validation import FoldPruner
from search.study.data_audit import StudyAudit, audit_study, write_audit
from search.study.location import StudyLocation
from search.study.pruners import PRUNERS
from search.study.samplers import SAMPLERS
from search.study.trial_data import TrialData
from search.trial_process.slot import StopEvent

#: Keys that a study may be resumed with another value of: they change no trial.
RESUMABLE_KEYS = (
    "budget.trials",
    "budget.hours",
    "budget.gpu_hours",
    "budget.trial_minutes",
    "budget.stall_minutes",
    "final.fit_on",
    "final.seeds",
    "final.tta",
    "final.postprocess",
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class OpenStudy:
    """A study with its data at hand."""

    folder: Path
    spec: StudySpec
    index: DatasetIndex
    cache: Cache
    split: Split
    study: optuna.Study
    store: ArtifactStore

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self.study.study_name

    @property
    def material(self) -> TrialData:
        """What trials train and are judged on."""
        names = self.cache.names
        folds = [(positions(f.train, names), positions(f.val, names)) for f in self.split.folds]
        train, val = positions(self.split.train, names), positions(self.split.val, names)
        return TrialData(self.cache.path, train, val, tuple(folds))

    def wait_for_storage(self, stopping: StopEvent, on_wait: Callable[[str], None]) -> None:
        """How a lost database is waited for: until this is set, and who is told."""
        self._backend.stop_event, self._backend.on_wait = stopping, on_wait

    def told(self, error: Exception) -> str:
        """What the database said of an error that is not to be waited out, in one line."""
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        text = str(getattr(cause, "orig", None) or cause or error)
        return f"storage: {self._backend.redact(' '.join(text.split()))[:300]}"

    @property
    def _backend(self) -> RetryingStorage:
        return backend_of(self.study)


def create_or_resume(
    spec: StudySpec,
    data: Roots,
    folder: Path,
    storage: str | None = None,
    artifacts: str | None = None,
    on_progress: Progress = lambda done, total: None,
) -> OpenStudy:
    """The folder's study: a new one of its name, or the one that is there.

    artifacts: where weights and checkpoints are kept, if not in the folder (``search.storage.artifact_store``).
    Everything that can be wrong with the input is found before anything is written.
    Raises InputError: data, folder or storage that cannot be used; a study of this name with
    another spec or other data (the keys that differ are named).
    """
    index = DatasetIndex.read(data, spec.data.layout)
    check_study_or_empty(folder)
    check_writable(folder)
    artifacts = _from_anywhere(artifacts)
    study = load_study(folder, storage=storage)[0] if is_study(folder) else None
    url = storage_url(storage, folder) if study is None else _recorded_url(folder, storage)
    if study is not None:
        _refuse_changed(study, spec, index)
        _refuse_other_place(study, artifacts)
    else:
        store = open_artifact_store(artifacts, folder)
        if url == sqlite_url(folder) and not (folder / "study.db").exists():
            store.check_not_foreign()  # nobody else can have founded this very study
    if study is None and url.get_backend_name() != "sqlite":
        open_storage(url)  # a server that cannot be reached is told before the pictures are read
    cache = build_cache(index, spec.data.image_size, on_progress=on_progress)
    # What was settled when the study was founded stays; its pictures are audited only then.
    audited = None
    if study is None:
        audited = _audited(spec, index, cache)
        split = _split(spec, index, cache, audited)
        study = _create(folder, url)
    else:
        split = _split_of(study)
    plain = spec.model_dump(mode="json")
    founded = TrialLeases(study).initialize_study(
        {
            "data": index.fingerprint(),
            "split": split.to_dict(),
            "groups": dict(audited.groups) if audited else {},
            "artifacts": artifacts,
            "uuid": uuid.uuid4().hex,
            "spec": plain,
        },
        warm_start.queue(spec),
    )
    # Another host may have founded it in a shared storage: what lies there is what counts.
    if not founded:
        _refuse_changed(study, spec, index)
        split = _split_of(study)
        _refuse_other_place(study, artifacts)
        study.set_user_attr("spec", plain)
    create_folder(folder)
    index = _regrouped(study, index)
    opened = OpenStudy(
        folder, spec, index, cache, split, study, _depot(study, folder, founding=True)
    )
    if audited:  # of the same data and spec as whoever founded it
        write_audit(folder, audited)
    _write(opened, url, data)
    return opened


def open_study(folder: Path, *, storage: str | None = None, data: Roots | None = None) -> OpenStudy:
    """A study that exists, as it was run. data: where its pictures are now, if they moved.

    InputError where the folder holds none, or its data are not those that it was run on.
    """
    study, about = load_study(folder, storage=storage)
    if data is None and about["data"] is None:
        raise InputError("--data: say where the images are on this host")
    return _opened(study, folder, data or _recorded_data(about))


def join_study(join: StudyLocation) -> OpenStudy:
    """A study that exists, as a worker of any host finds it: in its folder, or in the storage.

    InputError where there is none of the name, the data are not its own, or the folder is not the
    one that its checkpoints lie in.
    """
    if is_study(join.folder):
        return open_study(join.folder, storage=join.storage, data=join.data)
    if not (
        join.storage or os.environ.get(STORAGE_VARIABLE) or os.environ.get(STORAGE_FILE_VARIABLE)
    ):
        raise InputError(
            f"{join.folder}: no study here, and no --storage that one could be in; give the "
            f"database's URL, or the study's folder as --out"
        )
    url = storage_url(join.storage, join.folder)
    study = _load(
        url, join.name, f"{mask_password(url)} holds no study {join.name!r}; is it the name?"
    )
    if "spec" not in study.user_attrs:
        raise InputError(f"{mask_password(url)}: study {join.name!r} was not made by lesionsearch")
    if join.data is None:
        raise InputError("--data: say where the images are on this host")
    opened = _opened(study, join.folder, join.data)
    create_folder(join.folder)
    _write(opened, url, join.data)
    return opened


def _recorded_data(about: Mapping[str, Any]) -> Roots:
    there = about["data"]
    return Path(there) if isinstance(there, str) else tuple(map(Path, there))


def _opened(study: optuna.Study, folder: Path, data: Roots) -> OpenStudy:
    spec = parse_spec(study.user_attrs["spec"], f"study {study.study_name!r}")
    index = DatasetIndex.read(data, spec.data.layout)
    _refuse_changed(study, spec, index)
    store = _depot(study, folder, founding=False)
    cache = build_cache(index, spec.data.image_size)
    index = _regrouped(study, index)
    return OpenStudy(folder, spec, index, cache, _split_of(study), study, store)


def _depot(study: optuna.Study, folder: Path, *, founding: bool) -> ArtifactStore:
    """Where the study's weights are, once it is sure that they are this study's."""
    store = open_artifact_store(study.user_attrs.get("artifacts"), folder, study.study_name)
    marker = study.user_attrs["uuid"]
    (store.claim_marker if founding else store.check_marker)(marker)
    return store


def load_study(folder: Path, *, storage: str | None = None) -> tuple[optuna.Study, dict[str, Any]]:
    """A study's trials without its pictures, and its run.json."""
    about = read_run_info(folder)
    url = _recorded_url(folder, storage)
    lacking = f"{folder}: {mask_password(url)} holds no study {about['study']!r}; was it moved or deleted?"
    return _load(url, about["study"], lacking), about


def _load(url: URL, name: str, lacking: str) -> optuna.Study:
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise InputError(lacking)  # opening it would make an empty one
    try:
        return optuna.load_study(study_name=name, storage=open_storage(url))
    except KeyError:
        raise InputError(lacking) from None


def prepare_sampling(opened: OpenStudy, ordinal: int = 0) -> None:
    """Gives the study the spec's sampler and pruner.

    The seed moves with the number of trials there are: a sampler that began again from the
    spec's own seed would propose the trials of the last session once more. It moves with the
    worker's ordinal too: two samplers of one seed propose the same.
    """
    spec, study = opened.spec, opened.study
    seed = (
        spec.seed + 1_000_003 * len(trial_records.all_trials(study)) + 7_368_787 * ordinal
    ) % 2**31
    study.sampler = SAMPLERS[spec.sampler.name](seed, spec.sampler.startup)
    study.pruner = PRUNERS[spec.pruner.name](
        spec.budget.epochs, spec.pruner.min_epochs, spec.pruner.startup
    )
    if spec.data.split.kfold and spec.pruner.name != "none":
        study.pruner = FoldPruner(study.pruner, spec.budget.epochs, spec.pruner.startup)


def list_test_evaluations(study: optuna.Study) -> list[str]:
    """When this study's test images were looked at, ISO 8601 in UTC."""
    return list(study.user_attrs.get("test_evaluations", []))


def record_test_evaluation(study: optuna.Study) -> int:
    """Notes that the test images are looked at now, before they are; how often that makes."""
    looks = [
        *list_test_evaluations(study),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    ]
    study.set_user_attr("test_evaluations", looks)
    return len(looks)


def _is_official(spec: StudySpec, index: DatasetIndex) -> bool:
    mode = spec.data.split.mode
    return mode == "official" or (mode == "auto" and has_official(index.records))


def _audited(spec: StudySpec, index: DatasetIndex, cache: Cache) -> StudyAudit:
    return audit_study(
        index,
        cache,
        official=_is_official(spec, index),
        leaks=spec.data.leaks,
        pooled=spec.data.split.kfold is not None,
    )


def _split(spec: StudySpec, index: DatasetIndex, cache: Cache, audited: StudyAudit) -> Split:
    wanted = spec.data.split
    records = apply_groups(index.records, audited.groups)
    used = [i for i, r in enumerate(records) if r.name not in audited.left_out]
    return make_split(
        [records[i] for i in used],
        cache.areas[used],
        wanted.shares,
        seed=wanted.seed,
        official=_is_official(spec, index),
        limits=spec.data.limit.model_dump(),
        kfold=wanted.kfold,
    )


def _split_of(study: optuna.Study) -> Split:
    return Split.from_dict(study.user_attrs["split"])


def _regrouped(study: optuna.Study, index: DatasetIndex) -> DatasetIndex:
    """The index with copies in one group, as the study was founded with."""
    groups = study.user_attrs.get("groups", {})
    return replace(index, records=apply_groups(index.records, groups))


def _recorded_url(folder: Path, given: str | None) -> URL:
    """Where an existing study lies: as said now, else as its run.json says.

    The environment is asked for a password only: it must not lead away from where the study is.
    """
    recorded = read_run_info(folder)["storage"]
    if given is None and recorded is None:
        return sqlite_url(folder)
    if given is None and "***" in recorded:
        given = os.environ.get(STORAGE_VARIABLE)
        if not given:
            raise InputError(
                f"storage: the study lies in {recorded}, whose password is not kept; "
                f"give --storage or set {STORAGE_VARIABLE}"
            )
    return storage_url(given or recorded, folder)


def _create(folder: Path, url: URL) -> optuna.Study:
    if url == sqlite_url(folder):
        create_folder(folder)  # with another storage, not before that was opened
    return optuna.create_study(
        study_name=folder.resolve().name,  # of "." too
        storage=open_storage(url),
        direction=StudyDirection.MAXIMIZE,
        load_if_exists=True,
    )


def _refuse_changed(study: optuna.Study, spec: StudySpec, index: DatasetIndex) -> None:
    stored, name = study.user_attrs, study.study_name
    keys = find_differing_keys(_as_now(stored["spec"]), spec.model_dump(mode="json"))
    keys = [k for k in keys if k not in RESUMABLE_KEYS]
    if keys:
        raise InputError(
            f"study {name!r} exists with another spec: {', '.join(keys)} differ; "
            f"put the old values back, or start anew with another --out"
        )
    if stored["data"] != index.fingerprint():
        raise InputError(
            f"study {name!r} was run on other data (fingerprint {stored['data']}, now "
            f"{index.fingerprint()}); give the same folders, or start anew with another --out"
        )


def _as_now(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored spec with the defaults of keys that have been added since it was stored."""
    try:
        return parse_spec(stored, "the stored spec").model_dump(mode="json")
    except InputError:  # a key or an option is gone: the difference is to be told as it is
        return stored


def _from_anywhere(artifacts: str | None) -> str | None:
    """The same place, also for a process that works in another folder."""
    if artifacts is None or ":/" in artifacts:
        return artifacts
    return str(Path(artifacts).expanduser().resolve())


def _refuse_other_place(study: optuna.Study, artifacts: str | None) -> None:
    there = study.user_attrs.get("artifacts")
    if artifacts is not None and artifacts != there:
        raise InputError(
            f"--artifacts: study {study.study_name!r} keeps its checkpoints in "
            f"{there or 'its own folder'}, got {artifacts}; leave the option out"
        )


def settle(
    study: optuna.Study, folder: Path, url: URL, spec: StudySpec, data: Roots | None
) -> None:
    """Makes a folder the home of a study that came from elsewhere."""
    _depot(study, folder, founding=True)
    _put_files(folder, url, spec, study.study_name, study.user_attrs["split"], data)


def _write(opened: OpenStudy, url: URL, data: Roots) -> None:
    split = opened.split.to_dict()
    card = data_summary.summarize_data(opened.index, opened.cache, opened.split)
    put(opened.folder / data_summary.NAME, json.dumps(card, indent=1))
    _put_files(opened.folder, url, opened.spec, opened.name, split, data, opened.index.layout)


def _as_text(data: Roots) -> str | list[str]:
    """Where the data are; of several sets a list, in the order of their names."""
    places = sorted(str(root) for root in each_root(placed(data)))
    return places[0] if len(places) == 1 else places


def _put_files(
    folder: Path,
    url: URL,
    spec: StudySpec,
    name: str,
    split: Mapping[str, Any],
    data: Roots | None,
    layout: str | None = None,
) -> None:
    about = {
        "study": name,
        "storage": None if url == sqlite_url(folder) else mask_password(url),
        "data": None if data is None else _as_text(data),
        "layout": layout,
        "version": version("lesionsearch"),
    }
    plain = spec.model_dump(mode="json")
    put(folder / "study.yaml", yaml.safe_dump(plain, sort_keys=False))
    put(folder / "split.json", json.dumps(split, indent=1))
    put(folder / "run.json", json.dumps(about, indent=1))  # last: it says that the rest is there
