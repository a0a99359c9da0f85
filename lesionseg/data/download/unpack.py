"""Extraction of a zip archive: complete or not at all, and only inside its folder."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

#: Largest ratio of unpacked to packed size; a larger one is no archive of images.
MAX_GROWTH = 100
#: Disk space that is left free.
RESERVE_BYTES = 100_000_000

#: Errors of zipfile for damaged or (RuntimeError) encrypted archives.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


class ArchiveError(RuntimeError):
    """An archive is damaged or unsafe; the message is one line."""


class DiskFull(ArchiveError):
    """An archive does not fit on the disk."""


def extract_archive(archive: Path, root: Path, scratch: Path) -> None:
    """Extract a zip archive into the folder of its name below ``root``.

    An archive that contains a single folder of its own name is not nested. An existing folder is
    replaced by two renames.

    Args:
        archive: the zip file.
        root: parent of the new folder.
        scratch: folder on the same disk for partial results.

    Raises:
        ArchiveError: the archive is damaged, contains a link or a path outside its folder, or does
            not fit on the disk; nothing appears below ``root`` then.
    """
    folder, part = root / archive.stem, scratch / f"{archive.stem}.unpacking"
    old = scratch / f"{archive.stem}.old"
    _remove(part, old)
    try:
        _extract_members(archive, part)
    except BaseException:
        _remove(part)
        raise
    content = part / archive.stem
    if not (content.is_dir() and list(part.iterdir()) == [content]):
        content = part
    if folder.exists():
        os.replace(folder, old)
    os.replace(content, folder)
    _remove(part, old)


def _extract_members(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [m for m in zipped.infolist() if not _is_ignored(m)]
            _require_safe(archive, members)
            for member in members:
                zipped.extract(member, target)  # verifies the CRC
    except ArchiveError:
        raise
    except _DAMAGED as error:
        raise ArchiveError(f"{archive.name}: damaged: {error}") from None
    except OSError as error:
        if error.errno is None:  # raised by bz2, not by the file system
            raise ArchiveError(f"{archive.name}: damaged: {error}") from None
        raise


def _is_ignored(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is a folder or metadata of macOS."""
    name = PurePosixPath(member.filename).name
    return member.is_dir() or member.filename.startswith("__MACOSX/") or name.startswith("._")


def _require_safe(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise ArchiveError(f"{archive.name}: contains no file")
    paths = [PurePosixPath(member.filename.replace("\\", "/")) for member in members]
    folders = {folder for path in paths for folder in path.parents}
    for member, path in zip(members, paths, strict=True):
        if path.is_absolute() or ".." in path.parts or ":" in path.as_posix().partition("/")[0]:
            defect = "a path outside its folder"
        elif path in folders or not path.parts:
            defect = "a file that is also a folder"
        elif stat.S_ISLNK(member.external_attr >> 16):
            defect = "a link"
        else:
            continue
        raise ArchiveError(f"{archive.name}: contains {defect}: {member.filename!r}")
    size, free = sum(m.file_size for m in members), shutil.disk_usage(archive.parent).free
    if size > MAX_GROWTH * archive.stat().st_size + RESERVE_BYTES:
        raise ArchiveError(
            f"{archive.name}: would grow to {size / 1e9:.1f} GB: no archive of images"
        )
    if size + RESERVE_BYTES > free:
        raise DiskFull(
            f"{archive.name}: needs {size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB are free"
        )


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
