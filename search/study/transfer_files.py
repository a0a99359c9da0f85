"""Studies as files: written whole, and made into a study's folder again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import optuna

from lesionseg.data.sets import Roots
from lesionseg.errors import InputError
from search.spec.loading import parse_spec
from search.storage.database import storage_url
from search.storage.study_dir import check_study_or_empty, check_writable, create_folder, is_study
from search.study.lifecycle import settle
from search.study.transfer import export_study, import_study, write_csv


def export_to(study: optuna.Study, path: Path | None, *, csv: bool = False) -> None:
    """Writes a study to a file, or to standard output; a file is there whole or not at all.

    csv: a table for people instead of JSON lines. InputError where it cannot be written.
    """
    write = write_csv if csv else export_study
    if path is None:
        write(study, sys.stdout)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            write(study, file)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def import_from(path: Path, out: Path | None, storage: str | None, data: Roots | None) -> Path:
    """Makes a study of what ``export_to`` wrote; its folder.

    out: the folder, whose name names the study. data: where the images are; where it is not said,
    `run` will be told. InputError: what is no export, a folder or a storage that has the study.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            head = json.loads(lines.readline())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    except json.JSONDecodeError:
        head = None  # what is wrong with it is told below, with its line
    name = head.get("study") if isinstance(head, dict) else None
    folder = out or Path("runs") / str(name or "imported")
    if is_study(folder):
        raise InputError(f"--out: {folder} holds a study already; give a new folder")
    check_study_or_empty(folder)
    check_writable(folder)
    url = storage_url(storage, folder)
    fresh = not folder.exists()
    create_folder(folder)
    try:
        with path.open(encoding="utf-8") as lines:
            study = import_study(lines, url, folder.resolve().name, str(path))
        spec = parse_spec(study.user_attrs.get("spec", {}), str(path))
    except InputError:
        if fresh and not any(folder.glob("study.db*")):
            folder.rmdir()
        raise
    settle(study, folder, url, spec, data)
    return folder
