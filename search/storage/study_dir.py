"""A study's folder: what says that it is one, its lock, and what is wrong with others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lesionseg.errors import InputError
from search.storage.artifact_store import MARKER

#: What a folder may hold of a study that was cut off while it was made.
UNFINISHED_FILES = frozenset(
    {
        "study.db",
        "study.db-journal",
        "study.db-wal",
        "study.db-shm",
        "study.yaml",
        "split.json",
        "data.json",
        "audit.json",
        "trials",
        ".lock",
        MARKER,
    }
)


def is_study(folder: Path) -> bool:
    """Whether a study was created here."""
    return (folder / "run.json").is_file()


def read_run_info(folder: Path) -> dict[str, Any]:
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


def check_study_or_empty(folder: Path) -> None:
    """InputError where a folder holds other things than a study."""
    if not folder.is_dir() or is_study(folder):
        return
    if any(p.name not in UNFINISHED_FILES for p in folder.iterdir()):
        raise InputError(f"--out: {folder} holds other things than a study; give a new folder")


def check_writable(folder: Path) -> None:
    """InputError where a folder cannot be made or written to."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(f"--out: {folder} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out: {folder} cannot be written: no permission in {there}")


def create_folder(folder: Path) -> None:
    """Makes a folder and its parents; InputError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be made: {error.strerror}") from None


def put(path: Path, text: str) -> None:
    """Writes a file, or nothing: under its name lies a whole one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """What ``final/metrics.json`` of a study's folder holds; None before there is one."""
    path = folder / "final" / "metrics.json"
    if not path.is_file():
        return None
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored
