"""A study's folder: how it is recognised, locked and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lesionseg.errors import InputError
from search.storage.artifact_store import MARKER

#: What a folder may contain after its creation was interrupted.
UNFINISHED_FILES = frozenset(
    {
        *("study.db", "study.db-journal", "study.db-wal", "study.db-shm"),
        *("study.yaml", "split.json", "data.json", "audit.json", "trials", ".lock", MARKER),
    }
)


def is_study(folder: Path) -> bool:
    """Return whether a study was created in this folder."""
    return (folder / "run.json").is_file()


def read_run_info(folder: Path) -> dict[str, Any]:
    """Read the folder's run.json; InputError if there is no study."""
    with suppress(OSError, json.JSONDecodeError):
        if info := read_json(folder / "run.json"):
            return info
    raise InputError(f"{folder}: no study here; `lesionsearch status` lists those under runs/")


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read ``final/metrics.json`` of a study's folder; None before the final test."""
    return read_json(folder / "final" / "metrics.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@contextmanager
def lock_study(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's folder; InputError if another process holds it."""
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder}: another process is at work on this study; wait for it or stop it"
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
