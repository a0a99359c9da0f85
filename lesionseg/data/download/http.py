"""Resumable download of one file over HTTP.

The partial file is ``<name>.part``, with the ETag of the server in ``<name>.etag``. Bytes are
appended only if the server confirms that they belong to the same version of the file, and never
more than the announced size.
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
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

#: Attempts in a row without progress before a download fails.
ATTEMPTS = 8
#: Pauses between attempts in seconds: the base of the exponential backoff, its maximum, and the
#: longest Retry-After of a server that is respected.
BACKOFF_S, MAX_BACKOFF_S, MAX_RETRY_AFTER_S = 1.0, 60.0, 600.0
#: How often a download may start again from zero because the partial file does not match.
MAX_RESTARTS = 2
#: Timeouts in seconds: to connect, and between two packets.
TIMEOUT_S = (15, 60)
CHUNK_BYTES = 1 << 20
#: Answers that may differ next time: timeout, too many requests, errors of the server.
TRANSIENT_STATUS = frozenset({408, 429, *range(500, 600)})

#: Called with a file's name, the bytes done and the bytes in all.
Progress = Callable[[str, int, int], None]


class DownloadError(RuntimeError):
    """A download failed; the message is one line. A later call resumes it."""


class _PartialMismatch(Exception):
    """The server has another version of the file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server: its local name, address, size in bytes and, if published, MD5."""

    name: str
    url: str
    size: int
    md5: str | None = None


class _Retry(Retry):
    def parse_retry_after(self, retry_after: str) -> float:
        try:
            return min(super().parse_retry_after(retry_after), MAX_RETRY_AFTER_S)
        except InvalidHeader:
            return 0.0


def open_session() -> requests.Session:
    """Return a session that retries connection errors and transient status codes."""
    retry = _Retry(
        total=ATTEMPTS - 1,
        status_forcelist=TRANSIENT_STATUS,
        backoff_factor=BACKOFF_S,
        backoff_max=MAX_BACKOFF_S,
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def request(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
    """Send a request with retries.

    Raises:
        DownloadError: no connection, or an answer other than success (416 is returned).
    """
    try:
        response = session.request(method, url, timeout=TIMEOUT_S, allow_redirects=True, **options)
    except requests.RequestException as error:
        times = (
            f", {ATTEMPTS} times in a row" if isinstance(error, requests.ConnectionError) else ""
        )
        raise DownloadError(f"{url}: {_describe_error(error)}{times}") from error
    if response.ok or response.status_code == 416:
        return response
    status = response.status_code
    times = f", {ATTEMPTS} times in a row" if status in TRANSIENT_STATUS else ""
    response.close()
    raise DownloadError(f"{url}: the server answers {status} {response.reason}{times}")


def bytes_on_disk(path: Path) -> int:
    """Return the bytes of a complete or partial download."""
    return max(_size(path), _size(_partial_paths(path)[0]))


def download_file(
    session: requests.Session, remote: RemoteFile, path: Path, on_progress: Progress
) -> None:
    """Download a file, resuming a partial download.

    Raises:
        DownloadError: the server does not deliver the file, or delivers another size than
            announced; or the disk is full.
    """
    part, etag_path = _partial_paths(path)
    if _size(path) == remote.size:
        return
    if _size(part) > remote.size:
        _discard_part(path)
    stalls = restarts = 0
    largest = _size(part)
    while _size(part) != remote.size:
        try:
            reason = _download_rest(session, remote, path, on_progress)
        except _PartialMismatch as error:
            _discard_part(path)
            reason, largest, restarts = str(error), 0, restarts + 1
        except DownloadError as error:
            raise DownloadError(f"{error}{_kept(part, remote)}") from error
        except OSError as error:
            raise DownloadError(f"{part}: {error.strerror}; start again to go on") from None
        stalls = 0 if _size(part) > largest else stalls + 1
        largest = max(largest, _size(part))
        if stalls >= ATTEMPTS or restarts > MAX_RESTARTS:
            times = ATTEMPTS if stalls >= ATTEMPTS else restarts
            raise DownloadError(
                f"{remote.url}: {reason}, {times} times in a row{_kept(part, remote)}"
            )
        if stalls:
            time.sleep(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (stalls - 1)))
    os.replace(part, path)
    etag_path.unlink(missing_ok=True)


def _download_rest(
    session: requests.Session, remote: RemoteFile, path: Path, on_progress: Progress
) -> str:
    """Request the missing bytes and append them; return why the transfer ended."""
    part, etag_path = _partial_paths(path)
    size = _size(part)
    etag = etag_path.read_text() if size and etag_path.exists() else ""
    with request(
        session, "GET", remote.url, headers=_range_headers(size, etag), stream=True
    ) as response:
        start = _check_response(response, remote, size, etag)
        new_etag = response.headers.get("ETag")
        if new_etag or not start:
            etag_path.write_text(new_etag or "")
        with part.open("ab" if start else "wb") as file:
            try:
                # iter_content would lose the bytes received before a connection breaks.
                while chunk := response.raw.read1(CHUNK_BYTES):
                    start += len(chunk)
                    if start > remote.size:
                        part.unlink()
                        raise DownloadError(
                            f"{remote.url}: the server sends more than the {remote.size} bytes "
                            f"that it announced; they were discarded"
                        )
                    file.write(chunk)
                    on_progress(remote.name, start, remote.size)
            except HTTPError as error:
                return _describe_error(error)
    return "the connection closes early"


def _range_headers(size: int, etag: str) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
        # A changed file is then sent whole. Weak tags never match (RFC 9110, 13.1.5).
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    return headers


def _check_response(response: requests.Response, remote: RemoteFile, size: int, etag: str) -> int:
    """Return the offset at which the body starts: the size of the partial file, or 0."""
    if response.status_code == 416:
        raise _PartialMismatch("the server does not have the rest of the file")
    if response.status_code == 206:
        start, total = _parse_content_range(response.headers.get("Content-Range", ""))
        new_etag = response.headers.get("ETag")
        if start != size or (etag and new_etag and new_etag != etag):
            raise _PartialMismatch("the server sends another range than requested")
    else:
        start, length = 0, response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
    if total not in {None, remote.size}:
        raise DownloadError(
            f"{remote.url}: the server announced {remote.size} bytes and sends {total}"
        )
    return start


def _parse_content_range(value: str) -> tuple[int, int | None]:
    """Return the start and the total size, -1 and None where they are missing."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", value.strip())
    if not match:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _describe_error(error: Exception) -> str:
    """Return the innermost reason of an error of requests or urllib3 in one line."""
    cause: Any = error
    while getattr(cause, "args", None) and isinstance(cause.args[0], Exception):
        cause = cause.args[0]
    cause = getattr(cause, "reason", None) or cause
    return " ".join(str(cause).split())[:200] or type(error).__name__


def _kept(part: Path, remote: RemoteFile) -> str:
    size = _size(part)
    return f"; {size} of {remote.size} bytes are kept, start again to go on" if size else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _partial_paths(path: Path) -> tuple[Path, Path]:
    """Return the paths of the partial file and of its ETag."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.etag")


def _discard_part(path: Path) -> None:
    for partial in _partial_paths(path):
        partial.unlink(missing_ok=True)
