"""A study and its folder: created, opened again, refused where it is not the same any more.

``runs/<name>/`` holds study.yaml (the spec as it was run), run.json (where its data and its
storage are), split.json, study.db unless the storage is elsewhere, trials/<n>/, final/ and
report.html. What workers must agree on (spec, data, split) lies in the storage itself; the
folder's copies are for people.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.study import StudyDirection
from sqlalchemy.engine import URL

from lesionseg.data.cache import Cache, build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.split import Split, has_official, make_split, positions
from lesionseg.errors import InputError
from search import trials, warm_start
from search.pruners import PRUNERS
from search.samplers import SAMPLERS
from search.spec import StudySpec, differences, spec_from
from search.storage import ENVIRONMENT, local_url, masked, open_storage, storage_url
from search.worker import Material

#: Keys that a study may be resumed with another value of: they change no trial.
MAY_CHANGE = (
    "budget.trials",
    "budget.hours",
    "final.fit_on",
    "final.seeds",
    "final.tta",
    "final.postprocess",
)

#: What a folder may hold of a study that was cut off while it was made.
BEGUN = frozenset({"study.db", "study.db-journal", "study.yaml", "split.json", "trials", ".lock"})

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

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return self.study.study_name

    @property
    def material(self) -> Material:
        """What trials train and are judged on."""
        names = self.cache.names
        return Material(
            self.cache.path, positions(self.split.train, names), positions(self.split.val, names)
        )


def create_or_resume(
    spec: StudySpec,
    data: Path,
    folder: Path,
    storage: str | None = None,
    on_progress: Progress = lambda done, total: None,
) -> OpenStudy:
    """The folder's study: a new one of its name, or the one that is there.

    Everything that can be wrong with the input is found before anything is written.
    Raises InputError: data, folder or storage that cannot be used; a study of this name with
    another spec or other data (the keys that differ are named).
    """
    index = DatasetIndex.read(data, spec.data.layout)
    _refuse_foreign(folder)
    _refuse_unwritable(folder)
    study = open_records(folder, storage=storage)[0] if is_study(folder) else None
    url = storage_url(storage, folder) if study is None else _recorded_url(folder, storage)
    if study is not None:
        _refuse_changed(study, spec, index)
    elif url.get_backend_name() != "sqlite":
        open_storage(url)  # a server that cannot be reached is told before the pictures are read
    cache = build_cache(index, spec.data.image_size, on_progress=on_progress)
    split = _split(spec, index, cache)
    study = study or _create(folder, url)
    # Another host may have created it in a shared storage: what lies there is what counts.
    if "spec" in study.user_attrs:
        _refuse_changed(study, spec, index)
        split = Split.from_dict(study.user_attrs["split"])
    _make_folder(folder)
    opened = OpenStudy(folder, spec, index, cache, split, study)
    _write(opened, url, data)
    return opened


def open_study(folder: Path, *, storage: str | None = None, data: Path | None = None) -> OpenStudy:
    """A study that exists, as it was run. data: where its pictures are now, if they moved.

    InputError where the folder holds none, or its data are not those that it was run on.
    """
    study, about = open_records(folder, storage=storage)
    spec = spec_from(study.user_attrs["spec"], f"{folder / 'study.yaml'}")
    index = DatasetIndex.read(data or Path(about["data"]), spec.data.layout)
    _refuse_changed(study, spec, index)
    cache = build_cache(index, spec.data.image_size)
    split = Split.from_dict(study.user_attrs["split"])
    return OpenStudy(folder, spec, index, cache, split, study)


def open_records(
    folder: Path, *, storage: str | None = None
) -> tuple[optuna.Study, dict[str, Any]]:
    """A study's trials without its pictures, and its run.json."""
    about = read_about(folder)
    url = _recorded_url(folder, storage)
    lacking = f"{folder}: {masked(url)} holds no study {about['study']!r}; was it moved or deleted?"
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise InputError(lacking)  # opening it would make an empty one
    try:
        study = optuna.load_study(study_name=about["study"], storage=open_storage(url))
    except KeyError:
        raise InputError(lacking) from None
    return study, about


def is_study(folder: Path) -> bool:
    """Whether a study was created here."""
    return (folder / "run.json").is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """The folder's run.json; InputError where it is no study."""
    try:
        about: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise InputError(
            f"{folder}: no study here; `lesionsearch status` lists those under runs/"
        ) from None
    return about


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process from working on this folder; InputError if one does already."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder}: another process is at work on this study; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def prepare_sampling(opened: OpenStudy) -> None:
    """Gives the study the spec's sampler and pruner.

    The seed moves with the number of trials there are: a sampler that began again from the
    spec's own seed would propose the trials of the last session once more.
    """
    spec, study = opened.spec, opened.study
    seed = (spec.seed + 1_000_003 * len(trials.all_trials(study))) % 2**31
    study.sampler = SAMPLERS[spec.sampler.name](seed, spec.sampler.startup)
    study.pruner = PRUNERS[spec.pruner.name](
        spec.budget.epochs, spec.pruner.min_epochs, spec.pruner.startup
    )


def test_looks(study: optuna.Study) -> list[str]:
    """When this study's test images were looked at, ISO 8601 in UTC."""
    return list(study.user_attrs.get("test_looks", []))


def count_look(study: optuna.Study) -> int:
    """Notes that the test images are looked at now, before they are; how often that makes."""
    looks = [*test_looks(study), datetime.now(timezone.utc).isoformat(timespec="seconds")]
    study.set_user_attr("test_looks", looks)
    return len(looks)


def _split(spec: StudySpec, index: DatasetIndex, cache: Cache) -> Split:
    wanted = spec.data.split
    official = wanted.mode == "official" or (wanted.mode == "auto" and has_official(index.records))
    return make_split(
        index.records,
        cache.areas,
        {"train": wanted.train, "val": wanted.val, "test": wanted.test},
        seed=wanted.seed,
        official=official,
        limits=spec.data.limit.model_dump(),
    )


def _recorded_url(folder: Path, given: str | None) -> URL:
    """Where an existing study lies: as said now, else as its run.json says.

    The environment is asked for a password only: it must not lead away from where the study is.
    """
    recorded = read_about(folder)["storage"]
    if given is None and recorded is None:
        return local_url(folder)
    if given is None and "***" in recorded:
        given = os.environ.get(ENVIRONMENT)
        if not given:
            raise InputError(
                f"storage: the study lies in {recorded}, whose password is not kept; "
                f"give --storage or set {ENVIRONMENT}"
            )
    return storage_url(given or recorded, folder)


def _create(folder: Path, url: URL) -> optuna.Study:
    if url == local_url(folder):
        _make_folder(folder)  # with another storage, not before that was opened
    return optuna.create_study(
        study_name=folder.resolve().name,  # of "." too
        storage=open_storage(url),
        direction=StudyDirection.MAXIMIZE,
        load_if_exists=True,
    )


def _refuse_changed(study: optuna.Study, spec: StudySpec, index: DatasetIndex) -> None:
    stored, name = study.user_attrs, study.study_name
    keys = differences(_as_now(stored["spec"]), spec.model_dump(mode="json"))
    keys = [k for k in keys if k not in MAY_CHANGE]
    if keys:
        raise InputError(
            f"study {name!r} exists with another spec: {', '.join(keys)} differ; "
            f"put the old values back, or start anew with another --out"
        )
    if stored["data"] != index.fingerprint():
        raise InputError(
            f"study {name!r} was run on other data (fingerprint {stored['data']}, now "
            f"{index.fingerprint()}); give the same folder, or start anew with another --out"
        )


def _as_now(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored spec with the defaults of keys that have been added since it was stored."""
    try:
        return spec_from(stored, "the stored spec").model_dump(mode="json")
    except InputError:  # a key or an option is gone: the difference is to be told as it is
        return stored


def _refuse_foreign(folder: Path) -> None:
    if not folder.is_dir() or is_study(folder):
        return
    if any(p.name not in BEGUN for p in folder.iterdir()):
        raise InputError(f"--out: {folder} holds other things than a study; give a new folder")


def _refuse_unwritable(folder: Path) -> None:
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(f"--out: {folder} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out: {folder} cannot be written: no permission in {there}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be made: {error.strerror}") from None


def _write(opened: OpenStudy, url: URL, data: Path) -> None:
    plain = opened.spec.model_dump(mode="json")
    if "spec" not in opened.study.user_attrs:
        opened.study.set_user_attr("data", opened.index.fingerprint())
        opened.study.set_user_attr("split", opened.split.to_dict())
        warm_start.enqueue(opened.study, opened.spec)
    opened.study.set_user_attr("spec", plain)
    about = {
        "study": opened.name,
        "storage": None if url == local_url(opened.folder) else masked(url),
        "data": str(data.resolve()),
        "layout": opened.index.layout,
        "version": version("lesionsearch"),
    }
    folder = opened.folder
    _put(folder / "study.yaml", yaml.safe_dump(plain, sort_keys=False))
    _put(folder / "split.json", json.dumps(opened.split.to_dict(), indent=1))
    _put(folder / "run.json", json.dumps(about, indent=1))  # last: it says that the rest is there


def _put(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
