"""Unpacking an archive: whole or not at all, and nothing outside its folder."""

from __future__ import annotations

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


class BadArchive(RuntimeError):
    """An archive that is broken, or that should not be unpacked; one line."""


def unpack(archive: Path, home: Path, scratch: Path) -> Path:
    """Unpacks a zip into the folder of its name below ``home``; that folder.

    What the archive has in a folder of its own name is not put one level deeper. A folder that is
    there already is replaced. scratch: a folder on the same disk, for what is not whole yet.

    BadArchive where it is broken, or holds a link, or a name that leads out of it, or would
    fill the disk; nothing appears below ``home`` then.
    """
    folder, part = home / archive.stem, scratch / f"{archive.stem}.unpacking"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _wanted(zipped)
            _refuse_unsafe(archive, members)
            for member in members:
                zipped.extract(member, part)  # checks each member's CRC
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadArchive(f"{archive.name}: broken: {error}") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    inner = part / archive.stem
    whole = inner if inner.is_dir() and list(part.iterdir()) == [inner] else part
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(whole, folder)
    shutil.rmtree(part, ignore_errors=True)
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
        raise BadArchive(f"{archive.name}: holds no file")
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise BadArchive(f"{archive.name}: holds a name that leads out: {member.filename!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadArchive(f"{archive.name}: holds a link: {member.filename!r}")
    size = sum(m.file_size for m in members)
    if size > MOST_GROWTH * archive.stat().st_size + SPARE:
        raise BadArchive(f"{archive.name}: would grow to {size / 1e9:.1f} GB: no set of pictures")
    free = shutil.disk_usage(archive.parent).free
    if size + SPARE > free:
        raise BadArchive(
            f"{archive.name}: needs {size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB are free"
        )
