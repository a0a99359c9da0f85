"""Unpacking an archive: whole or not at all, and nothing outside its folder."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

#: An archive that grows to more than this many times its size is not one of pictures.
MOST_GROWTH = 100
#: What is left free on the disk, in bytes.
SPARE = 100_000_000

#: What zipfile and its decompressors raise for archives that are damaged, or encrypted
#: (RuntimeError, of which NotImplementedError is one).
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


class ArchiveError(RuntimeError):
    """An archive that is broken, or that should not be unpacked; one line."""


def unpack(archive: Path, home: Path, scratch: Path) -> Path:
    """Unpacks a zip into the folder of its name below ``home``; that folder.

    What the archive has in a folder of its own name is not put one level deeper. A folder that is
    there already is replaced, by two renames: never is a part of one there. scratch: a folder on
    the same disk, for what is not whole yet, or any more.

    ArchiveError where it is broken, or holds a link, or a name that leads out of it, or would
    fill the disk; nothing appears below ``home`` then.
    """
    folder, part = home / archive.stem, scratch / f"{archive.stem}.unpacking"
    old = scratch / f"{archive.stem}.old"
    for each in (part, old):
        shutil.rmtree(each, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _wanted(zipped)
            _refuse_unsafe(archive, members)
            for member in members:
                zipped.extract(member, part)  # checks each member's CRC
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, _BROKEN) and not isinstance(error, ArchiveError):
            raise ArchiveError(f"{archive.name}: broken: {error}") from None
        if isinstance(error, OSError) and error.errno is None:  # bz2's, not the disk's
            raise ArchiveError(f"{archive.name}: broken: {error}") from None
        raise
    inner = part / archive.stem
    whole = inner if inner.is_dir() and list(part.iterdir()) == [inner] else part
    if folder.exists():
        os.replace(folder, old)
    os.replace(whole, folder)
    for each in (part, old):
        shutil.rmtree(each, ignore_errors=True)
    return folder


def _wanted(zipped: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files, but for what a Mac adds of its own."""
    return [
        m
        for m in zipped.infolist()
        if not m.is_dir()
        and not m.filename.startswith("__MACOSX/")
        and not PurePosixPath(m.filename).name.startswith("._")
    ]


def _refuse_unsafe(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise ArchiveError(f"{archive.name}: holds no file")
    paths = [PurePosixPath(member.filename.replace("\\", "/")) for member in members]
    folders = {folder for path in paths for folder in path.parents}
    for member, path in zip(members, paths, strict=True):
        if path.is_absolute() or ".." in path.parts or ":" in path.as_posix().partition("/")[0]:
            raise ArchiveError(f"{archive.name}: holds a name that leads out: {member.filename!r}")
        if path in folders or not path.parts:
            raise ArchiveError(f"{archive.name}: holds a file that is a folder: {member.filename!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ArchiveError(f"{archive.name}: holds a link: {member.filename!r}")
    size = sum(m.file_size for m in members)
    if size > MOST_GROWTH * archive.stat().st_size + SPARE:
        raise ArchiveError(f"{archive.name}: would grow to {size / 1e9:.1f} GB: no set of pictures")
    free = shutil.disk_usage(archive.parent).free
    if size + SPARE > free:
        raise ArchiveError(
            f"{archive.name}: needs {size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB are free"
        )
