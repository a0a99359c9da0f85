"""Extraction of a zip archive: complete or not at all, and only inside its folder."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

#: Limit of the unpacked size: this ratio to the packed size, and some bytes. A larger archive is
#: no archive of images.
MAX_GROWTH, ALLOWANCE_BYTES = 100, 100_000_000

#: Errors of zipfile for damaged or (RuntimeError) encrypted archives, and of the disk.
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    OSError,
)


class ArchiveError(Exception):
    """An archive is damaged or unsafe; the message is one line."""


def extract_archive(archive: Path, root: Path, scratch: Path) -> None:
    """Extract a zip archive into the folder of its name below ``root``.

    An archive that contains a single folder of its own name is not nested. An existing folder is
    replaced by two renames. ``scratch`` is a folder on the same disk for partial results.

    Raises:
        ArchiveError: the archive is damaged, or contains a link or a path outside its folder.
        OSError: the disk is full. In both cases nothing appears below ``root``.
    """
    folder, temporary = root / archive.stem, scratch / f"{archive.stem}.unpacking"
    content = temporary / "new"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        _extract_members(archive, content)
        if [path.name for path in content.iterdir()] == [archive.stem]:
            content /= archive.stem
        if folder.exists():
            os.replace(folder, temporary / "old")
        os.replace(content, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract_members(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [m for m in zipped.infolist() if not _is_ignored(m)]
            _require_safe(archive, members)
            for member in members:
                zipped.extract(member, target)  # verifies the CRC
    except _ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # None: raised by bz2
            raise
        raise ArchiveError(f"{archive.name}: damaged: {error}") from None


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
    size_bytes = sum(member.file_size for member in members)
    if size_bytes > MAX_GROWTH * archive.stat().st_size + ALLOWANCE_BYTES:
        raise ArchiveError(
            f"{archive.name}: would grow to {size_bytes / 1e9:.1f} GB: no archive of images"
        )
