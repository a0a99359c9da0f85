"""One file over HTTP: resumed after a break, never stitched of two, never more than was said.

What is there of a file lies beside it as ``<name>.part``, with the tag that the server gave it as
``<name>.etag``. A piece is put behind it only where the server says that it belongs there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader

#: Attempts in a row that bring nothing before a file is given up, and the seconds before the
#: second of them; each pause is twice the last one.
ATTEMPTS, PAUSE, LONGEST = 8, 1.0, 60.0
#: The most seconds that a server may ask us to wait (Retry-After).
PATIENCE = 600.0
#: How often a file may be begun anew because what is there does not belong to it any more.
ANEW = 2
#: Seconds in which a server must answer, and between two pieces of what it sends.
TIMEOUT = (15, 60)
CHUNK = 1 << 20

#: Called with a file's name, its bytes so far and in all.
Progress = Callable[[str, int, int], None]


class DownloadError(RuntimeError):
    """A file could not be had; one line. What is there of it is gone on with next time."""


@dataclass(frozen=True)
class Remote:
    """A file to be had. size: in bytes; md5: as its keeper says, where it does."""

    name: str
    url: str
    size: int
    md5: str | None = None


@dataclass(frozen=True)
class _Failed:
    """An attempt that was none: why, how long the server asks us to wait, whether to begin anew."""

    reason: str
    wait: float = 0.0
    anew: bool = False


def size_of(path: Path) -> int:
    """Bytes of a file that may not be there."""
    return path.stat().st_size if path.exists() else 0


def there_of(path: Path) -> int:
    """Bytes that are there of a file that is being fetched, or was."""
    return max(size_of(path), size_of(_part(path)))


def ask(send: Callable[[], requests.Response], url: str) -> requests.Response:
    """An answer that is one, after several attempts; DownloadError if there is none."""
    reason = ""
    wait = 0.0
    for attempt in range(ATTEMPTS):
        if attempt:
            _pause(attempt, wait)
        try:
            answer = send()
        except requests.RequestException as error:
            reason, wait = _why(error), 0.0
            continue
        if answer.ok:
            return answer
        refused = _refused(answer, url)
        reason, wait = refused.reason, refused.wait
    raise DownloadError(f"{url}: {reason}, {ATTEMPTS} times in a row")


def download(http: requests.Session, remote: Remote, path: Path, on_progress: Progress) -> Path:
    """Brings a file to its size, going on from what is there of it; its path.

    DownloadError: a server that does not send it after several attempts, or sends what has another
    size than ``remote`` says; a disk that fills up.
    """
    part = _part(path)
    if size_of(path) == remote.size:
        return path
    if size_of(part) > remote.size:
        _drop(path)
    failures, begun, most = 0, 0, size_of(part)
    while size_of(part) != remote.size:
        try:
            failed = _attempt(http, remote, path, on_progress)
        except (requests.RequestException, HTTPError) as error:
            failed = _Failed(_why(error))
        except OSError as error:
            raise DownloadError(f"{part}: {error.strerror}; start again to go on") from None
        failed = failed or _Failed("it ends too early")
        if failed.anew:
            _drop(path)
            begun, most = begun + 1, 0
        have = size_of(part)
        failures = 0 if have > most else failures + 1
        most = max(most, have)
        if failures >= ATTEMPTS or begun > ANEW:
            times = ATTEMPTS if failures >= ATTEMPTS else begun
            raise DownloadError(
                f"{remote.url}: {failed.reason}, {times} times in a row; "
                f"{have} of {remote.size} bytes are kept, start again to go on"
            )
        if have != remote.size:
            _pause(failures, failed.wait)
    os.replace(part, path)
    _tag(path).unlink(missing_ok=True)
    return path


def _attempt(
    http: requests.Session, remote: Remote, path: Path, on_progress: Progress
) -> _Failed | None:
    part, tag = _part(path), _tag(path)
    have = size_of(part)
    known = tag.read_text() if have and tag.exists() else None
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        # A file that has changed since is then sent whole. Weak tags never match (RFC 9110).
        if known and not known.startswith("W/"):
            headers["If-Range"] = known
    with http.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:
            return _Failed("the server has not what follows of what was fetched", anew=True)
        if answer.status_code not in {200, 206}:
            return _refused(answer, remote.url)
        etag = answer.headers.get("ETag")
        if answer.status_code == 206:
            start, total = _range_of(answer)
            if start != have or (known and etag and etag != known):
                return _Failed("the server sends another part than it was asked for", anew=True)
        else:
            have, total = 0, _length_of(answer)
        if total not in {None, remote.size}:
            raise DownloadError(
                f"{remote.url}: the server said that it has {remote.size} bytes, and sends {total}"
            )
        if etag:
            tag.write_text(etag)
        elif not have:
            tag.unlink(missing_ok=True)
        with part.open("ab" if have else "wb") as file:
            _write(answer, file, remote, have, on_progress)
    return None


def _write(
    answer: requests.Response, file: Any, remote: Remote, have: int, on_progress: Progress
) -> None:
    # Not iter_content: what came of a piece before the line broke would be lost with it.
    while piece := answer.raw.read1(CHUNK):
        have += len(piece)
        if have > remote.size:
            Path(file.name).unlink()
            raise DownloadError(
                f"{remote.url}: the server sends more than the {remote.size} bytes that it "
                f"said it has; nothing of it was used"
            )
        file.write(piece)
        on_progress(remote.name, have, remote.size)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _tag(path: Path) -> Path:
    return path.with_name(f"{path.name}.etag")


def _drop(path: Path) -> None:
    for each in (_part(path), _tag(path)):
        each.unlink(missing_ok=True)


def _range_of(answer: requests.Response) -> tuple[int | None, int | None]:
    """Where what is sent begins in the file, and the file's size, where it is told."""
    told = answer.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.strip())
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _length_of(answer: requests.Response) -> int | None:
    told = answer.headers.get("Content-Length", "")
    return int(told) if told.isdecimal() else None


def _refused(answer: requests.Response, url: str) -> _Failed:
    """What may be otherwise next time; DownloadError for an answer that will be the same."""
    reason = f"the server answers {answer.status_code} {answer.reason}"
    if 400 <= answer.status_code < 500 and answer.status_code not in {408, 416, 429}:
        raise DownloadError(f"{url}: {reason}")
    told = answer.headers.get("Retry-After")
    try:
        wait = urllib3.Retry().parse_retry_after(told) if told else 0.0
    except InvalidHeader:
        wait = 0.0
    return _Failed(reason, min(wait, PATIENCE))


def _pause(failures: int, wait: float = 0.0) -> None:
    """Twice as long each time, and at least as long as the server asked for."""
    own = min(LONGEST, PAUSE * 2 ** (failures - 1)) if failures else 0.0
    time.sleep(max(own, wait))


def _why(error: Exception) -> str:
    """In one line, without the library's nesting."""
    cause: Any = error
    while getattr(cause, "args", None) and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    cause = getattr(cause, "reason", None) or cause
    return " ".join(str(cause).split())[:200] or type(error).__name__
