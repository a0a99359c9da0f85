"""Fetching a public data set: resumed after a break, checked, and whole or not at all.

Below the data set's folder, ``.fetch/`` holds what is under way and ``done.json``, which says of
each file what it was when it was whole: its size and its SHA-256. A folder of pictures appears by
one rename; what is half there is never taken for a data set.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import requests

from lesionseg.data.download.datasets import BY_HAND, SOURCES, Source
from lesionseg.data.download.http import (
    CHUNK,
    TIMEOUT,
    DownloadError,
    Progress,
    Remote,
    ask,
    download,
    there_of,
)
from lesionseg.data.download.unpack import SPARE, ArchiveError, unpack
from lesionseg.errors import InputError, nearest

#: Unpacked pictures of these sets take about as much as their archives.
ROOM = 2.2


@dataclass(frozen=True)
class Done:
    """A file as it was when it was whole."""

    size: int
    sha256: str
    url: str


def fetch(
    name: str,
    root: Path,
    *,
    accept: bool = False,
    base: str | None = None,
    keep_archives: bool = False,
    on_progress: Progress = lambda name, done, total: None,
) -> Path:
    """Fetches a row of SOURCES into a folder, or what it lacks of it; the folder.

    accept: whether the user accepts the data set's licence. base: of a mirror, in place of the
    owner's address. keep_archives: leaves them in ``.fetch/``.

    InputError: no such data set, a licence that was not accepted, too little room on the disk, a
    folder that cannot be written to.
    DownloadError: a server that has not, or does not send, what it should, after several attempts.
    """
    if name in BY_HAND:
        raise InputError(f"data fetch: {name} cannot be fetched: {BY_HAND[name]}")
    if name not in SOURCES:
        raise InputError(f"data fetch: no source of {name!r} ({nearest(name, SOURCES)})")
    source = SOURCES[name]
    if not accept:
        raise InputError(
            f"data fetch: {source.about}, about {source.size:g} GB, is under {source.license} "
            f"({source.terms}); read it, and accept it with --accept-license"
        )
    scratch = root / ".fetch"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(scratch / "lock", blocking=False), requests.Session() as http:
            task = _Fetch(source, root, scratch, base or source.base, http, on_progress)
            task.all(keep_archives)
    except filelock.Timeout:
        raise InputError(f"data fetch: {root}: another process is fetching into it") from None
    except OSError as error:
        raise _of_disk(error, root) from error
    return root


def _of_disk(error: OSError, root: Path) -> InputError | DownloadError:
    """What a folder that cannot be written to, or a disk that fills up, is told as."""
    where, why = error.filename or root, error.strerror or error
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return InputError(f"data fetch: {where}: {why}; --root must be a folder to write to")
    return DownloadError(f"{where}: {why}; what is there is kept, start again to go on")


class _Fetch:
    def __init__(
        self,
        source: Source,
        root: Path,
        scratch: Path,
        base: str,
        http: requests.Session,
        on_progress: Progress,
    ) -> None:
        self.source, self.root, self.scratch = source, root, scratch
        self.base, self.http, self.on_progress = base.rstrip("/"), http, on_progress
        self.done = _read_done(scratch / "done.json")

    def all(self, keep_archives: bool) -> None:
        missing = [name for name in self.source.files if not self._is_whole(name)]
        self._refuse_foreign(missing)
        remotes = self._listed(missing)
        self._refuse_full(remotes)
        for remote in remotes:
            self._one(remote, keep_archives)

    def _is_whole(self, name: str) -> bool:
        return name in self.done and (self.root / name.removesuffix(".zip")).exists()

    def _refuse_foreign(self, missing: list[str]) -> None:
        """InputError where something stands in the way that was not fetched by us.

        It may be whole or not, and hold files of the user's own. What we have unpacked and not
        noted yet has its archive still there.
        """
        for name in missing:
            path = self.root / name.removesuffix(".zip")
            if path.exists() and not (self.scratch / name).exists():
                raise InputError(
                    f"data fetch: {path}: is there and was not fetched by this command; move it "
                    f"away to fetch it, or use the folder as it is"
                )

    def _one(self, remote: Remote, keep_archives: bool) -> None:
        path = self.scratch / remote.name
        done = self._checked(remote, download(self.http, remote, path, self.on_progress))
        try:
            if path.suffix == ".zip":
                unpack(path, self.root, self.scratch)
            else:
                shutil.copyfile(path, part := self.scratch / f"{remote.name}.copy")
                os.replace(part, self.root / remote.name)
        except ArchiveError as error:
            if not _is_to_blame(error):
                raise DownloadError(str(error)) from None
            path.unlink(missing_ok=True)  # as it is, it would be refused each time
            raise DownloadError(f"{error}; it was deleted, start again to fetch it anew") from None
        self._note(remote.name, done)
        if not keep_archives:
            path.unlink()

    # --- what there is ---------------------------------------------------------------------------

    def _listed(self, names: list[str]) -> list[Remote]:
        if not names:
            return []
        if self.source.dataset:
            return self._of_dataverse(names)
        return [self._of_server(name) for name in names]

    def _of_server(self, name: str) -> Remote:
        url = f"{self.base}/{name}"
        answer = ask(lambda: self.http.head(url, timeout=TIMEOUT, allow_redirects=True), url)
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal() or not int(length):
            raise DownloadError(f"{url}: the server does not say how large it is")
        return Remote(name, url, int(length))

    def _of_dataverse(self, names: list[str]) -> list[Remote]:
        """Files of a Dataverse have numbers for names; its native API tells them."""
        dataset = self.source.dataset
        url = f"{self.base}/api/datasets/:persistentId/?persistentId={dataset}"
        answer = ask(lambda: self.http.get(url, timeout=TIMEOUT), url)
        try:
            rows = [row["dataFile"] for row in answer.json()["data"]["latestVersion"]["files"]]
            known = {_stem(r["filename"]): r for r in rows}
            return [self._of_row(name, known[_stem(name)]) for name in names]
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{url}: does not list what it should: {error!r}") from None

    def _of_row(self, name: str, row: Mapping[str, Any]) -> Remote:
        # What the Dataverse made a table of, it gives back as it was with format=original.
        table = "originalFileFormat" in row
        url = f"{self.base}/api/access/datafile/{row['id']}{'?format=original' if table else ''}"
        size = int(row["originalFileSize"] if table else row["filesize"])
        return Remote(name, url, size, None if table else row.get("md5"))

    def _refuse_full(self, remotes: list[Remote]) -> None:
        there = sum(there_of(self.scratch / r.name) for r in remotes)
        needed = int(ROOM * sum(r.size for r in remotes)) - there + (SPARE if remotes else 0)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise InputError(
                f"data fetch: {self.root}: {needed / 1e9:.1f} GB are needed to fetch and unpack, "
                f"{free / 1e9:.1f} GB are free; make room, or name another --root"
            )

    # --- one file --------------------------------------------------------------------------------

    def _checked(self, remote: Remote, path: Path) -> Done:
        """What it is; DownloadError where its keeper, or an earlier time, says otherwise."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                sha256.update(piece)
                md5.update(piece)
        known = self.done.get(remote.name)
        if remote.md5 and md5.hexdigest() != remote.md5:
            path.unlink()
            raise DownloadError(
                f"{remote.url}: its MD5 is {md5.hexdigest()}, and should be {remote.md5}; it was "
                f"deleted, start again to fetch it anew"
            )
        if known and known.sha256 != sha256.hexdigest():
            raise DownloadError(
                f"{remote.url}: is another file than when it was fetched first (SHA-256 "
                f"{sha256.hexdigest()[:12]}, then {known.sha256[:12]}); to take it, take "
                f"its entry out of {self.scratch / 'done.json'}"
            )
        return Done(path.stat().st_size, sha256.hexdigest(), remote.url)

    def _note(self, name: str, done: Done) -> None:
        self.done[name] = done
        part = self.scratch / "done.json.part"
        part.write_text(json.dumps({k: asdict(v) for k, v in self.done.items()}, indent=1))
        os.replace(part, self.scratch / "done.json")


def _is_to_blame(error: ArchiveError) -> bool:
    """Whether fetching it again may help."""
    return "are free" not in str(error)


def _stem(name: str) -> str:
    return name.lower().partition(".")[0]


def _read_done(path: Path) -> dict[str, Done]:
    try:
        return {name: Done(**row) for name, row in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"data fetch: {path}: is not what was written; delete it to fetch all anew"
        ) from None
