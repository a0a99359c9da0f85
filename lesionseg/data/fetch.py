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
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import requests
import urllib3

from lesionseg.data.sources import BY_HAND, SOURCES, Source
from lesionseg.data.unpack import SPARE, BadArchive, unpack
from lesionseg.errors import InputError, nearest

#: Attempts in a row that bring nothing before a file is given up, and the seconds before the
#: second of them; each pause is twice the last one.
ATTEMPTS, PAUSE, LONGEST = 8, 1.0, 60.0
#: Seconds in which a server must answer, and between two pieces of what it sends.
TIMEOUT = (15, 60)
CHUNK = 1 << 20
#: Unpacked pictures of these sets take about as much as their archives.
ROOM = 2.2

#: Called with a file's name, its bytes so far and in all.
Progress = Callable[[str, int, int], None]


class FetchFailed(RuntimeError):
    """The data set could not be had; one line. What is there of it is gone on with next time."""


@dataclass(frozen=True)
class Remote:
    """A file to be had. size: in bytes; md5: as its keeper says, where it does."""

    name: str
    url: str
    size: int
    md5: str | None = None


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
    FetchFailed: a server that has not, or does not send, what it should, after several attempts.
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
        with filelock.FileLock(scratch / "lock", blocking=False):
            _Fetch(source, root, scratch, base or source.base, on_progress).all(keep_archives)
    except filelock.Timeout:
        raise InputError(f"data fetch: {root}: another process is fetching into it") from None
    except OSError as error:
        raise _of_disk(error, root) from error
    return root


def _of_disk(error: OSError, root: Path) -> InputError | FetchFailed:
    """What a folder that cannot be written to, or a disk that fills up, is told as."""
    where, why = error.filename or root, error.strerror or error
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return InputError(f"data fetch: {where}: {why}; --root must be a folder to write to")
    return FetchFailed(f"{where}: {why}; what is there is kept, start again to go on")


class _Fetch:
    def __init__(
        self, source: Source, root: Path, scratch: Path, base: str, on_progress: Progress
    ) -> None:
        self.source, self.root, self.scratch = source, root, scratch
        self.base, self.on_progress = base.rstrip("/"), on_progress
        self.http = requests.Session()
        self.done = _read_done(scratch / "done.json")

    def all(self, keep_archives: bool) -> None:
        missing = [name for name in self.source.files if not self._is_whole(name)]
        remotes = self._listed(missing)
        self._refuse_full(remotes)
        for remote in remotes:
            self._one(remote, keep_archives)

    def _is_whole(self, name: str) -> bool:
        return name in self.done and (self.root / name.removesuffix(".zip")).exists()

    def _one(self, remote: Remote, keep_archives: bool) -> None:
        path = self.scratch / remote.name
        done = self._checked(remote, self._downloaded(remote, path))
        try:
            if path.suffix == ".zip":
                unpack(path, self.root, self.scratch)
            else:
                shutil.copyfile(path, part := self.scratch / f"{remote.name}.copy")
                os.replace(part, self.root / remote.name)
        except BadArchive as error:
            if not _is_to_blame(error):
                raise FetchFailed(str(error)) from None
            path.unlink(missing_ok=True)  # as it is, it would be refused each time
            raise FetchFailed(f"{error}; it was deleted, start again to fetch it anew") from None
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
        answer = self._asked(
            lambda: self.http.head(url, timeout=TIMEOUT, allow_redirects=True), url
        )
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise FetchFailed(f"{url}: the server does not say how large it is")
        return Remote(name, url, int(length))

    def _of_dataverse(self, names: list[str]) -> list[Remote]:
        """Files of a Dataverse have numbers for names; its native API tells them."""
        dataset = self.source.dataset
        url = f"{self.base}/api/datasets/:persistentId/?persistentId={dataset}"
        answer = self._asked(lambda: self.http.get(url, timeout=TIMEOUT), url)
        try:
            rows = [row["dataFile"] for row in answer.json()["data"]["latestVersion"]["files"]]
            known = {_stem(r["filename"]): r for r in rows}
            return [self._of_row(name, known[_stem(name)]) for name in names]
        except (ValueError, KeyError, TypeError) as error:
            raise FetchFailed(f"{url}: does not list what it should: {error!r}") from None

    def _of_row(self, name: str, row: Mapping[str, Any]) -> Remote:
        # What the Dataverse made a table of, it gives back as it was with format=original.
        table = "originalFileFormat" in row
        url = f"{self.base}/api/access/datafile/{row['id']}{'?format=original' if table else ''}"
        size = int(row["originalFileSize"] if table else row["filesize"])
        return Remote(name, url, size, None if table else row.get("md5"))

    def _refuse_full(self, remotes: list[Remote]) -> None:
        there = sum(_size(self.scratch / r.name) for r in remotes)
        needed = int(ROOM * sum(r.size for r in remotes)) - there + (SPARE if remotes else 0)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise InputError(
                f"data fetch: {self.root}: {needed / 1e9:.1f} GB are needed to fetch and unpack, "
                f"{free / 1e9:.1f} GB are free; make room, or name another --root"
            )

    # --- one file --------------------------------------------------------------------------------

    def _downloaded(self, remote: Remote, path: Path) -> Path:
        """Brings a file to its size, going on from what is there of it."""
        if _size(path) == remote.size:
            return path
        part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.etag")
        failures, most = 0, _size(part)
        while True:
            try:
                reason = self._append(remote, part, tag)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = _why(error)
            except OSError as error:
                raise FetchFailed(f"{part}: {error.strerror}; start again to go on") from None
            have = _size(part)
            if have == remote.size:
                os.replace(part, path)
                tag.unlink(missing_ok=True)
                return path
            failures = 0 if have > most else failures + 1
            most = max(most, have)
            if failures >= ATTEMPTS:
                raise FetchFailed(
                    f"{remote.url}: {reason or 'it ends too early'}, {ATTEMPTS} times in a row; "
                    f"{have} of {remote.size} bytes are kept, start again to go on"
                )
            _pause(failures)

    def _append(self, remote: Remote, part: Path, tag: Path) -> str | None:
        """One attempt; why it was none, if it was not."""
        have = _size(part)
        if have > remote.size:
            part.unlink()
            have = 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if tag.exists():  # of a file that has changed since, all is sent anew
                headers["If-Range"] = tag.read_text()
        with self.http.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # what is there is not a beginning of what they have
                part.unlink(missing_ok=True)
                return "the server has less of it than was fetched"
            if answer.status_code not in {200, 206}:
                _refuse_final(answer, remote.url)
                return f"the server answers {answer.status_code} {answer.reason}"
            goes_on = answer.status_code == 206 and _begins_at(answer, have)
            if etag := answer.headers.get("ETag"):
                tag.write_text(etag)
            with part.open("ab" if goes_on else "wb") as file:
                self._write(answer, file, remote, have if goes_on else 0)
        return None

    def _write(self, answer: requests.Response, file: Any, remote: Remote, have: int) -> None:
        # Not iter_content: what came of a piece before the line broke would be lost with it.
        while piece := answer.raw.read1(CHUNK):
            have += len(piece)
            if have > remote.size:
                Path(file.name).unlink()
                raise FetchFailed(
                    f"{remote.url}: the server sends more than the {remote.size} bytes that it "
                    f"said it has; nothing of it was used"
                )
            file.write(piece)
            self.on_progress(remote.name, have, remote.size)

    def _checked(self, remote: Remote, path: Path) -> Done:
        """What it is; FetchFailed where its keeper, or an earlier time, says otherwise."""
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                sha256.update(piece)
                md5.update(piece)
        known = self.done.get(remote.name)
        if remote.md5 and md5.hexdigest() != remote.md5:
            path.unlink()
            raise FetchFailed(
                f"{remote.url}: its MD5 is {md5.hexdigest()}, and should be {remote.md5}; it was "
                f"deleted, start again to fetch it anew"
            )
        if known and known.sha256 != sha256.hexdigest():
            raise FetchFailed(
                f"{remote.url}: is another file than when it was fetched first (SHA-256 "
                f"{sha256.hexdigest()[:12]}, then {known.sha256[:12]}); to take it, delete "
                f"{self.scratch / 'done.json'}"
            )
        return Done(path.stat().st_size, sha256.hexdigest(), remote.url)

    def _note(self, name: str, done: Done) -> None:
        self.done[name] = done
        part = self.scratch / "done.json.part"
        part.write_text(json.dumps({k: asdict(v) for k, v in self.done.items()}, indent=1))
        os.replace(part, self.scratch / "done.json")

    def _asked(self, ask: Callable[[], requests.Response], url: str) -> requests.Response:
        """An answer that is one, after several attempts."""
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                _pause(attempt)
            try:
                answer = ask()
            except requests.RequestException as error:
                reason = _why(error)
                continue
            if answer.ok:
                return answer
            _refuse_final(answer, url)
            reason = f"the server answers {answer.status_code} {answer.reason}"
        raise FetchFailed(f"{url}: {reason}, {ATTEMPTS} times in a row")


def _is_to_blame(error: BadArchive) -> bool:
    """Whether fetching it again may help."""
    return "are free" not in str(error)


def _refuse_final(answer: requests.Response, url: str) -> None:
    """FetchFailed for an answer that will be the same next time."""
    if 400 <= answer.status_code < 500 and answer.status_code not in {408, 416, 429}:
        raise FetchFailed(f"{url}: the server answers {answer.status_code} {answer.reason}")


def _begins_at(answer: requests.Response, have: int) -> bool:
    return answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _pause(failures: int) -> None:
    if failures:
        time.sleep(min(LONGEST, PAUSE * 2 ** (failures - 1)))


def _why(error: Exception) -> str:
    """In one line, without the library's nesting."""
    cause: Any = error
    while getattr(cause, "args", None) and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    cause = getattr(cause, "reason", None) or cause
    return " ".join(str(cause).split())[:200] or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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
