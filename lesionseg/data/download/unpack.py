"""Extraction of zip archives of unknown origin: inside one folder, complete or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lesionseg.runtime.files import find_name_problem

#: Limits of an archive. The largest of the known data sets has 10,015 members on one level.
MAX_MEMBERS, MAX_DEPTH = 100_000, 16


class ArchiveError(Exception):
    """An archive is damaged or has unsafe members; the message is one line."""


def extract_archive(archive: Path, root: Path, scratch: Path) -> None:
    """Extract a zip archive into the folder of its name below ``root``.

    An archive that contains a single folder of its own name is not nested. An existing folder is
    replaced by two renames. ``scratch`` is a folder on the same disk for partial results.

    Raises:
        ArchiveError: the archive is damaged or empty, or has members that ``_check_members``
            refuses.
        OSError: the disk is full. In both cases nothing appears below ``root``.
    """
    folder, temporary = root / archive.stem, scratch / f"{archive.stem}.unpacking"
    content = temporary / "new"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        _extract_members(archive, content)
        inner = content / archive.stem
        if list(content.iterdir()) == [inner] and inner.is_dir():
            content = inner
        if folder.exists():
            os.replace(folder, temporary / "old")
        os.replace(content, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_members(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Check all members before the first is written.

    Raises:
        ArchiveError: too many members; more data than free disk space; a member that is not a file
            or folder; or a path that is absolute, leads out of the folder, has names that file
            systems do not accept, is too deep, or differs from that of another member only in
            case.
    """
    if len(members) > MAX_MEMBERS:
        raise ArchiveError(
            f"{archive.name}: has {len(members)} members, at most {MAX_MEMBERS} are unpacked"
        )
    size, free = sum(member.file_size for member in members), shutil.disk_usage(archive.parent).free
    if size > free:
        raise ArchiveError(
            f"{archive.name}: unpacks to {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        path = member.orig_filename  # ``filename`` ends at a NUL
        if problem := _find_member_problem(member):
            raise ArchiveError(f"{archive.name}: member {path!r:.80}: {problem}")
        parts = (
            unicodedata.normalize("NFC", path.rstrip("/")).casefold().removeprefix("./").split("/")
        )
        parents = {"/".join(parts[:n]) for n in range(1, len(parts))}
        whole = "/".join(parts)
        if whole in files or parents & files or (whole in folders and not member.is_dir()):
            raise ArchiveError(f"{archive.name}: two members have the path {path!r:.80}")
        (folders if member.is_dir() else files).add(whole)
        folders |= parents


def _find_member_problem(member: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "it is not a file or folder"
    parts = member.orig_filename.removeprefix("./").removesuffix("/").split("/")
    if len(parts) > MAX_DEPTH:
        return f"it is {len(parts)} levels deep, at most {MAX_DEPTH} are unpacked"
    return next(filter(None, map(find_name_problem, parts)), None)


def _extract_members(archive: Path, target: Path) -> None:
    target.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            # Metadata of macOS, with names that would be refused.
            members = [m for m in members if not m.orig_filename.startswith("__MACOSX/")]
            _check_members(archive, members)
            # Verifies the CRCs, and writes no more than was declared.
            zipped.extractall(target, members)
    except ArchiveError:
        raise
    except Exception as error:  # zipfile raises many types for a damaged or encrypted archive
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; bz2's has none
            raise
        raise ArchiveError(f"{archive.name}: damaged: {error}") from None
    if not any(target.iterdir()):
        raise ArchiveError(f"{archive.name}: contains no file")
