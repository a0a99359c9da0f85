"""Resumable download of one file over HTTP.

The partial file is ``<name>.part``, with the ETag of the server in ``<name>.etag``. Bytes are
appended only if the server confirms that they belong to the same version of the file, and never
more than the announced size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError, ProtocolError

#: Attempts in a row without progress before a download fails.
ATTEMPTS = 8
#: Pauses between attempts in seconds: the base of the exponential backoff, its maximum, and the
#: longest Retry-After of a server that is respected.
BACKOFF_S, MAX_BACKOFF_S, MAX_RETRY_AFTER_S = 1.0, 60.0, 600
#: Timeouts in seconds: to connect, and between two packets.
TIMEOUT_S = (15, 60)
CHUNK_BYTES = 1 << 20
#: Answers that may differ next time: timeout, too many requests, errors of the server.
TRANSIENT_STATUS = frozenset({408, 429, *range(500, 600)})

#: Called with a file's name, the bytes done and the bytes in all.
Progress = Callable[[str, int, int], None]


class DownloadError(RuntimeError):
    """A download failed; the message is one line. A later call resumes it."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server: its local name, address, size in bytes and, if published, MD5."""

    name: str
    url: str
    size: int
    md5: str | None = None


def open_session() -> requests.Session:
    """Return a session that retries connection errors and transient status codes."""
    retry = Retry(
        total=ATTEMPTS - 1,
        status_forcelist=TRANSIENT_STATUS,
        backoff_factor=BACKOFF_S,
        backoff_max=MAX_BACKOFF_S,
        retry_after_max=MAX_RETRY_AFTER_S,
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
        raise DownloadError(f"{url}: {_describe_error(error)}") from error
    if not response.ok and response.status_code != 416:
        response.close()
        raise DownloadError(f"{url}: the server answers {response.status_code} {response.reason}")
    return response


def bytes_on_disk(path: Path) -> int:
    """Return the bytes of a complete or partial download."""
    return max(_size(path), _size(_partial_paths(path)[0]))


def download_file(
    session: requests.Session, remote: RemoteFile, path: Path, on_progress: Progress
) -> None:
    """Download a file, resuming a partial download.

    Raises:
        DownloadError: the server does not deliver the file, or delivers another size than
            announced.
    """
    part, etag_path = _partial_paths(path)
    if _size(path) == remote.size:
        return
    if _size(part) > remote.size:
        part.unlink()
    adapter: Any = session.get_adapter(remote.url)
    retry, largest = adapter.max_retries, _size(part)
    while _size(part) != remote.size:
        try:
            _download_rest(session, remote, path, on_progress)
        except HTTPError as error:
            if _size(part) > largest:
                retry, largest = adapter.max_retries, _size(part)
            try:
                retry = retry.increment("GET", remote.url, error=error)
            except MaxRetryError:
                times = f"{len(retry.history) + 1} times in a row"
                raise DownloadError(f"{remote.url}: {_describe_error(error)}, {times}") from error
            retry.sleep()
    os.replace(part, path)
    etag_path.unlink(missing_ok=True)


def _download_rest(
    session: requests.Session, remote: RemoteFile, path: Path, on_progress: Progress
) -> None:
    """Request the missing bytes and append them; raises HTTPError if the transfer breaks off."""
    part, etag_path = _partial_paths(path)
    size = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    with request(session, "GET", remote.url, headers=headers, stream=True) as response:
        done, total = 0, response.headers.get("Content-Length", "*")
        etag = response.headers.get("ETag", "")
        if response.status_code != 200:
            content_range = response.headers.get("Content-Range", "")
            match = re.fullmatch(rf"bytes {size}-\d+/(\d+|\*)", content_range.strip())
            if not match or etag.encode() != _read(etag_path):
                part.unlink(missing_ok=True)
                raise ProtocolError("the server sends another range or file than requested")
            done, total = size, match[1]
        if total not in {"*", str(remote.size)}:
            raise DownloadError(
                f"{remote.url}: the server announced {remote.size} bytes and sends {total}"
            )
        with part.open("ab" if done else "wb") as file:
            if not done:
                etag_path.write_text(etag, encoding="utf-8")
            # iter_content would lose the bytes received before a connection breaks.
            while chunk := response.raw.read1(CHUNK_BYTES):
                done += len(chunk)
                if done > remote.size:
                    part.unlink()
                    raise DownloadError(
                        f"{remote.url}: the server sends more than the {remote.size} bytes that "
                        f"it announced; they were discarded"
                    )
                file.write(chunk)
                on_progress(remote.name, done, remote.size)
    if done < remote.size:
        raise ProtocolError("the connection closes early")


def _describe_error(error: Exception) -> str:
    """Return the innermost reason of an error of requests or urllib3 in one line."""
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", None) or cause
    return " ".join(str(cause).split())[:200] or type(error).__name__


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _partial_paths(path: Path) -> tuple[Path, Path]:
    """Return the paths of the partial file and of its ETag."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.etag")
