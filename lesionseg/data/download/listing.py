"""Addresses and sizes of the files of a data set, as its server announces them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import requests

from lesionseg.data.download.datasets import DatasetSource
from lesionseg.data.download.http import DownloadError, RemoteFile, request


def list_files(
    session: requests.Session, source: DatasetSource, base_url: str, names: Sequence[str]
) -> list[RemoteFile]:
    """Look up files of a data set.

    Raises:
        DownloadError: the server does not have a file or does not announce its size.
    """
    if names and source.doi:
        return _list_dataverse(session, base_url, source.doi, names)
    return [_look_up(session, f"{base_url}/{name}", name) for name in names]


def _look_up(session: requests.Session, url: str, name: str) -> RemoteFile:
    length = request(session, "HEAD", url).headers.get("Content-Length", "")
    if not length.isdecimal() or not int(length):
        raise DownloadError(f"{url}: the server does not announce the size")
    return RemoteFile(name, url, int(length))


def _list_dataverse(
    session: requests.Session, base_url: str, doi: str, names: Sequence[str]
) -> list[RemoteFile]:
    """List files by the native API of Dataverse, where files are addressed by number."""
    url = f"{base_url}/api/datasets/:persistentId/?persistentId={doi}"
    response = request(session, "GET", url)
    try:
        rows = [row["dataFile"] for row in response.json()["data"]["latestVersion"]["files"]]
        by_stem = {_stem(row["filename"]): row for row in rows}
        return [_parse_row(base_url, name, by_stem[_stem(name)]) for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{url}: unexpected answer: {error!r}") from None


def _parse_row(base_url: str, name: str, row: Mapping[str, Any]) -> RemoteFile:
    url = f"{base_url}/api/access/datafile/{row['id']}"
    if "originalFileFormat" in row:  # converted to a table; the original is still available
        return RemoteFile(name, f"{url}?format=original", int(row["originalFileSize"]))
    return RemoteFile(name, url, int(row["filesize"]), row.get("md5"))


def _stem(name: str) -> str:
    return name.lower().partition(".")[0]
