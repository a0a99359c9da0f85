"""Atomic writing of files and folders, reading of JSON, and safe file names."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError, one_line

#: Limit of ``file_stem`` in bytes. A whole name may have 255 bytes, on eCryptfs 143.
MAX_STEM_BYTES = 120
#: Characters that separate folders, or that file systems of Windows do not accept.
_UNSAFE = frozenset('/\\:*?"<>|')
#: Largest size in bytes of a name from a file, a database or an archive; endings may be added.
MAX_NAME_BYTES = 200
#: Largest nesting depth of JSON. Deeper data would exhaust the stack of recursive functions.
MAX_JSON_DEPTH = 32


def file_stem(name: str) -> str:
    """Return a valid file name, without ending, for any text.

    Characters that are unsafe in paths or unprintable become ``_``, and a long name is cut to
    MAX_STEM_BYTES. A changed name ends in a hash, so that different names stay different.
    """
    safe = "".join("_" if c in _UNSAFE or not c.isprintable() else c for c in name)
    if safe == name and len(name.encode()) <= MAX_STEM_BYTES:
        return name
    suffix = "-" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return safe.encode()[: MAX_STEM_BYTES - len(suffix)].decode(errors="ignore") + suffix


def find_name_problem(name: str) -> str | None:
    """Return why a text cannot be the name of a file or folder; None if it can.

    Use it for each name from a file, a database or an archive that becomes part of a path.
    """
    if not name.isprintable():  # also surrogates, which cannot be encoded
        return "a name may not have characters that cannot be printed"
    if name in {"", ".", ".."} or not {"/", "\\"}.isdisjoint(name):
        return "a name may not be empty, . or .., or have / or \\"
    size = len(name.encode())
    return (
        f"a name has at most {MAX_NAME_BYTES} bytes, got {size}" if size > MAX_NAME_BYTES else None
    )


def check_file_name(name: str, where: str, remedy: str) -> str:
    """Return a name that ``find_name_problem`` accepts; raise InputError for any other."""
    if problem := find_name_problem(name):
        raise InputError(f"{where}: {name!r:.80} cannot be a file's name: {problem}; {remedy}")
    return name


def read_json(path: Path) -> Any:
    """Read a file of JSON in UTF-8.

    Raises:
        InputError: the file cannot be read, is not JSON, or is nested deeper than MAX_JSON_DEPTH.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if _is_deeper(plain, MAX_JSON_DEPTH):
            raise RecursionError(f"more than {MAX_JSON_DEPTH} levels")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, not JSON: {one_line(error)[:100]}") from None
    return plain


def _is_deeper(plain: Any, depth: int) -> bool:
    if not isinstance(plain, dict | list):
        return False
    inner = plain.values() if isinstance(plain, dict) else plain
    return depth == 0 or any(_is_deeper(value, depth - 1) for value in inner)


@contextmanager
def atomic_path(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` for a new file, which is renamed to it at the end.

    After an error the new file is deleted and an existing one stays as it is. A device or pipe,
    such as /dev/null, is written directly: a rename would replace it.

    Args:
        path: of the file; its folder must exist.
        unique: whether several processes or threads may write this file at the same time. A file
            that a killed process left is otherwise overwritten by the next one.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    part = f".{uuid.uuid4().hex}" if unique else ""
    partial = path.with_name(f".{file_stem(path.name)}{part}.partial")
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
    stem = file_stem(folder.name)
    partial, previous = (folder.with_name(f".{stem}.{end}") for end in ("partial", "previous"))
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
