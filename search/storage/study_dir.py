"""A study's folder: how it is recognised, read, locked and checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NotRequired

from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from lesionseg.errors import InputError
from lesionseg.runtime.files import check_file_name
from search.storage.artifact_store import MARKER
from search.storage.final_report import FinalReport
from search.storage.stored_files import DatabaseName, Name, read_json_file

#: What a folder may contain after its creation was interrupted.
UNFINISHED_FILES = frozenset(
    {
        *("study.db", "study.db-journal", "study.db-wal", "study.db-shm"),
        *("study.yaml", "split.json", "data.json", "audit.json", "trials", ".lock", MARKER),
    }
)


def _check_path(path: str) -> str:
    os.fsencode(path)  # raises ValueError
    if "\0" in path:
        raise ValueError("a path cannot contain NUL")
    return path


StoredPath = Annotated[Name, AfterValidator(_check_path)]


class RunInfo(TypedDict):
    """The content of run.json.

    study: the study's name in its storage.
    uuid: the study's user attribute ``uuid``; older programs did not write it.
    storage: URL of the storage without its password; None for ``study.db`` in the folder.
    data: folders of the images; None if they are not known.
    layout: of the images, if they are known.
    version: of the program that wrote the file.
    """

    study: DatabaseName
    uuid: NotRequired[str | None]
    storage: str | None
    data: StoredPath | Annotated[list[StoredPath], Field(min_length=1)] | None
    layout: str | None
    version: str


def default_folder(study: str, where: str = "study") -> Path:
    """Return the folder ``runs/<study>``.

    Raises:
        InputError: The name cannot be that of a folder. where: its origin, for the message.
    """
    return Path("runs") / check_file_name(study, where, "give its folder as --out")


def is_study(folder: Path) -> bool:
    """Return whether a study was created in this folder."""
    return os.path.isfile(folder / "run.json")  # also False for invalid names


def read_run_info(folder: Path) -> RunInfo:
    """Read the folder's run.json; InputError if there is no study or the file is damaged."""
    if not is_study(folder):
        raise InputError(f"{folder}: no study here; `lesionsearch status` lists those under runs/")
    return read_json_file(folder / "run.json", RunInfo, rewrite_hint(folder))


def read_metrics(folder: Path) -> FinalReport | None:
    """Read ``final/metrics.json`` of a study's folder; None before the final test."""
    path = folder / "final" / "metrics.json"
    return read_json_file(path, FinalReport, retest_hint(folder)) if path.is_file() else None


def rewrite_hint(folder: Path) -> str:
    """Return how to rewrite the files that are derived from the study's records and images."""
    return (
        f"`lesionsearch run` with the study's file, --data DIR and --out {folder} writes it again"
    )


def retest_hint(folder: Path) -> str:
    """Return how to write the files of the final test again."""
    return f"`lesionsearch final {folder} --again` writes it again, with one more test evaluation"


@contextmanager
def lock_study(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's folder; InputError if another process holds it."""
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder}: another process is at work on this study; wait for it or stop it"
        ) from None
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written: {error.strerror or error}; make it writable for this "
            f"user, or work on a copy"
        ) from None
    with lock:
        yield


def check_study_or_empty(folder: Path) -> None:
    """Raise InputError if a folder has files that belong to no study."""
    if not folder.is_dir() or is_study(folder):
        return
    if any(p.name not in UNFINISHED_FILES for p in folder.iterdir()):
        raise InputError(f"--out: {folder} holds other things than a study; give a new folder")


def check_writable(folder: Path) -> None:
    """Raise InputError if a folder cannot be created or written to."""
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--out: {folder} cannot be made: {error.strerror}") from None
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"--out: {folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out: {folder} cannot be written: no permission in {existing}")


def create_folder(folder: Path) -> None:
    """Create a folder and its parents; InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be made: {error.strerror}") from None
