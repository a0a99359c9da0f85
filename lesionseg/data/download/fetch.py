"""Download of a public data set: resumable, verified, and complete or absent.

``.fetch/`` in the data set's folder holds partial files and ``done.json`` with the size and SHA-256
of each complete file. An image folder appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import requests

from lesionseg.data.download.datasets import MANUAL_DOWNLOADS, SOURCES, DatasetSource
from lesionseg.data.download.http import (
    CHUNK_BYTES,
    DownloadError,
    Progress,
    RemoteFile,
    bytes_on_disk,
    download_file,
    open_session,
)
from lesionseg.data.download.listing import list_files
from lesionseg.data.download.unpack import RESERVE_BYTES, ArchiveError, DiskFull, extract_archive
from lesionseg.errors import InputError, suggest_name
from lesionseg.runtime.files import atomic_write

#: Disk space needed, as a multiple of the archives: they and the images have about equal size.
SPACE_FACTOR = 2.2


@dataclass(frozen=True)
class CompleteFile:
    """A row of ``done.json``."""

    size: int
    sha256: str
    url: str


def fetch_dataset(
    name: str,
    root: Path,
    *,
    accept_license: bool = False,
    base_url: str | None = None,
    keep_archives: bool = False,
    on_progress: Progress = lambda name, done, total: None,
) -> None:
    """Download what a folder lacks of a data set.

    Args:
        name: key of SOURCES.
        root: folder of the data set.
        accept_license: whether the user accepts the licence of the data set.
        base_url: of a mirror, instead of the owner's server.
        keep_archives: keep the archives in ``.fetch/``.
        on_progress: called with file name, bytes done and bytes in all.

    Raises:
        InputError: unknown data set, licence not accepted, too little disk space, or a folder that
            cannot be written.
        DownloadError: a server does not deliver a file after several attempts.
    """
    source = _find_source(name)
    if not accept_license:
        raise InputError(
            f"data fetch: {source.about}, about {source.size_gb:g} GB, is under {source.license} "
            f"({source.license_url}); read it, and accept it with --accept-license"
        )
    scratch = root / ".fetch"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(scratch / "lock", blocking=False), open_session() as session:
            fetcher = _Fetcher(source, root, scratch)
            fetcher.run(session, base_url or source.base_url, keep_archives, on_progress)
    except filelock.Timeout:
        raise InputError(f"data fetch: {root}: another process is downloading into it") from None
    except OSError as error:
        place, reason = error.filename or root, error.strerror or error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise InputError(
                f"data fetch: {place}: {reason}; --root must be a writable folder"
            ) from error
        raise DownloadError(
            f"{place}: {reason}; complete files are kept, start again to go on"
        ) from error


def _find_source(name: str) -> DatasetSource:
    if name in MANUAL_DOWNLOADS:
        raise InputError(f"data fetch: {name} cannot be downloaded: {MANUAL_DOWNLOADS[name]}")
    if name not in SOURCES:
        raise InputError(f"data fetch: unknown data set {name!r} ({suggest_name(name, SOURCES)})")
    return SOURCES[name]


class _Fetcher:
    """Downloads, verifies and unpacks the files of one data set."""

    def __init__(self, source: DatasetSource, root: Path, scratch: Path) -> None:
        self.source, self.root, self.scratch = source, root, scratch
        self.complete = _read_complete_files(scratch / "done.json")

    def run(
        self, session: requests.Session, base_url: str, keep_archives: bool, on_progress: Progress
    ) -> None:
        missing = [name for name in self.source.files if not self._is_complete(name)]
        self._require_own_folders(missing)
        remotes = list_files(session, self.source, base_url.rstrip("/"), missing)
        self._require_space(remotes)
        for remote in remotes:
            archive = self.scratch / remote.name
            download_file(session, remote, archive, on_progress)
            row = self._verify(remote, archive)
            self._install(archive)
            self._record(remote.name, row)
            if not keep_archives:
                archive.unlink()

    def _target(self, name: str) -> Path:
        return self.root / name.removesuffix(".zip")

    def _is_complete(self, name: str) -> bool:
        return name in self.complete and self._target(name).exists()

    def _require_own_folders(self, missing: list[str]) -> None:
        """Raise InputError if a target exists that this command did not create.

        A target that was unpacked but not yet recorded has its archive in ``.fetch/``.
        """
        for name in missing:
            target = self._target(name)
            if target.exists() and not (self.scratch / name).exists():
                raise InputError(
                    f"data fetch: {target}: exists and was not created by this command; move it "
                    f"away to download it, or use the folder as it is"
                )

    def _require_space(self, remotes: list[RemoteFile]) -> None:
        existing = sum(bytes_on_disk(self.scratch / remote.name) for remote in remotes)
        needed = int(SPACE_FACTOR * sum(remote.size for remote in remotes)) - existing
        needed += RESERVE_BYTES if remotes else 0
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise InputError(
                f"data fetch: {self.root}: {needed / 1e9:.1f} GB are needed to download and "
                f"unpack, {free / 1e9:.1f} GB are free; free some, or name another --root"
            )

    def _verify(self, remote: RemoteFile, path: Path) -> CompleteFile:
        """Compare the checksums with the server's and with those of an earlier download."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                sha256.update(chunk)
                md5.update(chunk)
        if remote.md5 and md5.hexdigest() != remote.md5:
            path.unlink()
            raise DownloadError(
                f"{remote.url}: its MD5 is {md5.hexdigest()}, expected {remote.md5}; it was "
                f"deleted, start again to download it again"
            )
        earlier = self.complete.get(remote.name)
        if earlier and earlier.sha256 != sha256.hexdigest():
            raise DownloadError(
                f"{remote.url}: differs from the file that was downloaded before (SHA-256 "
                f"{sha256.hexdigest()[:12]}, before {earlier.sha256[:12]}); to accept it, remove "
                f"its entry from {self.scratch / 'done.json'}"
            )
        return CompleteFile(path.stat().st_size, sha256.hexdigest(), remote.url)

    def _install(self, archive: Path) -> None:
        """Unpack an archive, or copy a file, to its target."""
        if archive.suffix != ".zip":
            part = self.scratch / f"{archive.name}.copy"
            shutil.copyfile(archive, part)
            os.replace(part, self._target(archive.name))
            return
        try:
            extract_archive(archive, self.root, self.scratch)
        except DiskFull as error:
            raise DownloadError(str(error)) from None
        except ArchiveError as error:
            archive.unlink(missing_ok=True)
            raise DownloadError(
                f"{error}; it was deleted, start again to download it again"
            ) from None

    def _record(self, name: str, row: CompleteFile) -> None:
        self.complete[name] = row
        rows = {name: asdict(row) for name, row in self.complete.items()}
        atomic_write(self.scratch / "done.json", json.dumps(rows, indent=1))


def _read_complete_files(path: Path) -> dict[str, CompleteFile]:
    try:
        return {name: CompleteFile(**row) for name, row in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"data fetch: {path}: is not valid; delete it to download everything again"
        ) from None
