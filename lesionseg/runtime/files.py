"""Write files and folders so that under their name lies a complete one or none."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` for a new file, which is renamed to it at the end.

    After an error the new file is deleted and an existing one stays as it is.

    Args:
        path: of the file; its folder must exist.
        unique: whether several processes or threads may write this file at the same time. A file
            that a killed process left is otherwise overwritten by the next one.
    """
    part = f".{uuid.uuid4().hex}" if unique else ""
    partial = path.with_name(f".{path.name}{part}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: str | bytes, *, unique: bool = False) -> None:
    """Write a file with ``atomic_path``; text in UTF-8."""
    with atomic_path(path, unique=unique) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder that is renamed to ``folder`` at the end.

    After an error the new folder is deleted and an existing one stays as it is. What a killed
    process left is overwritten by the next one. The parent folder is created.

    replace: whether to replace an existing folder; otherwise OSError unless it is empty.
    """
    partial, previous = (folder.with_name(f".{folder.name}.{e}") for e in ("partial", "previous"))
    for leftover in (partial, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace and folder.exists():
            folder.rename(previous)
        partial.replace(folder)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
