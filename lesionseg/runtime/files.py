"""Write files so that under their name lies a complete one or none."""

from __future__ import annotations

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
