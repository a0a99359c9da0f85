"""Download of a public data set: resumable, verified, and complete or absent.

``.fetch/`` in the data set's folder holds partial files and ``done.json`` with the size and SHA-256
of each complete file. An archive is unpacked inside its folder only, which appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import filelock
import requests

from lesionseg.data.download.datasets import MANUAL_DOWNLOADS, SOURCES, DatasetSource, list_files
from lesionseg.data.download.http import (
    DownloadError,
    Progress,
    RemoteFile,
    bytes_on_disk,
    download_file,
    open_session,
)
from lesionseg.data.download.unpack import ArchiveError, extract_archive
from lesionseg.errors import InputError, suggest_name
from lesionseg.runtime.files import atomic_path, atomic_write, read_json

#: Disk space needed: a multiple of the archives, as they and the images have about equal size, and
#: a reserve.
SPACE_FACTOR, RESERVE_BYTES = 2.2, 100_000_000


def fetch_dataset(
    name: str,
    root: Path,
    *,
    accept_license: bool = False,
    base_url: str | None = None,
    keep_archives: bool = False,
    on_progress: Progress = lambda name, done, total: None,
) -> None:
    """Download what the folder ``root`` lacks of a data set of SOURCES.

    ``base_url`` is that of a mirror, instead of the owner's server.

    Raises:
        InputError: unknown data set, licence not accepted, too little disk space, or a folder that
            cannot be written.
        DownloadError: a server does not deliver a file after several attempts.
    """
    if name in MANUAL_DOWNLOADS:
        raise InputError(f"data fetch: {name} cannot be downloaded: {MANUAL_DOWNLOADS[name]}")
    if name not in SOURCES:
        raise InputError(f"data fetch: unknown data set {name!r} ({suggest_name(name, SOURCES)})")
    source = SOURCES[name]
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
        problem = f"{error.filename or root}: {error.strerror or error}"
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise InputError(f"data fetch: {problem}; --root must be a writable folder") from error
        raise DownloadError(f"{problem}; complete files are kept, start again to go on") from error


class _Fetcher:
    """Downloads, verifies and unpacks the files of one data set."""

    def __init__(self, source: DatasetSource, root: Path, scratch: Path) -> None:
        self.source, self.root, self.scratch = source, root, scratch
        self.done_path = scratch / "done.json"
        self.complete = read_rows(self.done_path) if self.done_path.exists() else {}

    def run(
        self, session: requests.Session, base_url: str, keep_archives: bool, on_progress: Progress
    ) -> None:
        missing = [
            name
            for name in self.source.files
            if name not in self.complete or not self._target(name).exists()
        ]
        self._require_own_folders(missing)
        remotes = list_files(session, self.source, base_url.rstrip("/"), missing)
        self._require_space(remotes)
        for remote in remotes:
            archive = self.scratch / remote.name
            try:
                download_file(session, remote, archive, on_progress)
            except DownloadError as error:
                kept = f"{bytes_on_disk(archive)} of {remote.size} bytes are kept"
                raise DownloadError(f"{error}; {kept}, start again to go on") from error
            try:
                row = self._verify(remote, archive)
                self._install(archive)
            except ArchiveError as error:
                archive.unlink()
                raise DownloadError(
                    f"{remote.url}: {error}; it was deleted, start again to download it again"
                ) from None
            self.complete[remote.name] = row
            atomic_write(self.done_path, json.dumps(self.complete, indent=1))
            if not keep_archives:
                archive.unlink()

    def _target(self, name: str) -> Path:
        return self.root / name.removesuffix(".zip")

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

    def _verify(self, remote: RemoteFile, path: Path) -> dict[str, Any]:
        """Compare the checksums with the server's and with those of an earlier download."""
        if remote.md5 and (md5 := _hash_file(path, "md5")) != remote.md5:
            raise ArchiveError(f"its MD5 is {md5}, expected {remote.md5}")
        sha256 = _hash_file(path, "sha256")
        earlier = self.complete.get(remote.name, {}).get("sha256", sha256)
        if earlier != sha256:
            raise DownloadError(
                f"{remote.url}: differs from the file that was downloaded before (SHA-256 "
                f"{sha256[:12]}, before {earlier[:12]}); to accept it, remove its entry from "
                f"{self.done_path}"
            )
        return {"size": remote.size, "sha256": sha256, "url": remote.url}

    def _install(self, archive: Path) -> None:
        """Unpack an archive, or copy a file, to its target."""
        if archive.suffix == ".zip":
            extract_archive(archive, self.root, self.scratch)
        else:
            with atomic_path(self._target(archive.name)) as part:
                shutil.copyfile(archive, part)


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of done.json by file name; InputError if it is damaged."""
    remedy = f"delete it and what was unpacked to {path.parent.parent}, and download again"
    try:
        rows = read_json(path)
    except InputError as error:
        raise InputError(f"data fetch: {error}; {remedy}") from None
    if not isinstance(rows, dict) or not all(
        isinstance(row, dict) and isinstance(row.get("sha256"), str) for row in rows.values()
    ):
        raise InputError(f"data fetch: {path}: damaged: needs the SHA-256 of each file; {remedy}")
    return rows


def _hash_file(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
