"""Public dermoscopy data sets with lesion masks, and their files on the servers of their owners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import requests

from lesionseg.data.download.http import DownloadError, RemoteFile, request

_ISIC = "https://isic-challenge-data.s3.amazonaws.com"


@dataclass(frozen=True)
class DatasetSource:
    """A downloadable data set; with a ``doi`` the server is a Dataverse installation."""

    about: str
    license: str
    base_url: str
    files: tuple[str, ...]
    size_gb: float
    license_url: str = "https://challenge.isic-archive.com/data/"
    doi: str | None = None


def _zip_names(images: str, masks: str, splits: str) -> tuple[str, ...]:
    return tuple(
        f"{name.format(split)}.zip" for split in splits.split() for name in (images, masks)
    )


SOURCES: Mapping[str, DatasetSource] = {
    "isic2016": DatasetSource(
        about="ISIC 2016, part 1: 900 and 379 pairs (Gutman et al., arXiv:1605.01397)",
        license="CC0 1.0",
        base_url=f"{_ISIC}/2016",
        files=_zip_names(
            "ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth", "Training Test"
        ),
        size_gb=0.9,
    ),
    "isic2017": DatasetSource(
        about="ISIC 2017, part 1: 2000, 150 and 600 pairs (Codella et al., arXiv:1710.05006)",
        license="CC0 1.0",
        base_url=f"{_ISIC}/2017",
        files=_zip_names(
            "ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", "Training Validation Test_v2"
        ),
        size_gb=12.0,
    ),
    "isic2018": DatasetSource(
        about="ISIC 2018, task 1: 2594, 100 and 1000 pairs (Codella et al., arXiv:1902.03368)",
        license="CC BY-NC 4.0",
        base_url=f"{_ISIC}/2018",
        files=_zip_names(
            "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", "Training Validation Test"
        ),
        size_gb=13.0,
    ),
    "ham10000": DatasetSource(
        about="HAM10000: 10015 pairs of 7470 lesions (Tschandl et al., doi:10.1038/sdata.2018.161)",
        license="CC BY-NC 4.0",
        base_url="https://dataverse.harvard.edu",
        files=(
            "HAM10000_images_part_1.zip",
            "HAM10000_images_part_2.zip",
            "HAM10000_segmentations_lesion_tschandl.zip",
            "HAM10000_metadata",
        ),
        size_gb=2.8,
        license_url="https://doi.org/10.7910/DVN/DBW86T",
        doi="doi:10.7910/DVN/DBW86T",
    ),
}

#: Data sets that cannot be downloaded automatically, and how to get them.
MANUAL_DOWNLOADS: Mapping[str, str] = {
    "ph2": "the ADDI project distributes it through a form at "
    "https://www.fc.up.pt/addi/ph2%20database.html; unpack its archive and pass the "
    "folder that contains 'PH2 Dataset images' as --data",
}


def list_files(
    session: requests.Session, source: DatasetSource, base_url: str, names: Sequence[str]
) -> list[RemoteFile]:
    """Look up addresses and sizes of files as the server of a data set announces them.

    Raises:
        DownloadError: the server does not have a file or does not announce its size.
    """
    if names and source.doi:
        return _list_dataverse(session, base_url, source.doi, names)
    files = []
    for name in names:
        url = f"{base_url}/{name}"
        length = request(session, "HEAD", url).headers.get("Content-Length", "")
        if not length.isdecimal() or not int(length):
            raise DownloadError(f"{url}: the server does not announce the size")
        files.append(RemoteFile(name, url, int(length)))
    return files


def _list_dataverse(
    session: requests.Session, base_url: str, doi: str, names: Sequence[str]
) -> list[RemoteFile]:
    """List files by the native API of Dataverse, where files are addressed by number."""
    url = f"{base_url}/api/datasets/:persistentId/?persistentId={doi}"
    response, files = request(session, "GET", url), []
    try:
        rows = [row["dataFile"] for row in response.json()["data"]["latestVersion"]["files"]]
        by_stem = {row["filename"].lower().partition(".")[0]: row for row in rows}
        for name in names:
            row = by_stem[name.lower().partition(".")[0]]
            file_url = f"{base_url}/api/access/datafile/{row['id']}"
            if "originalFileFormat" in row:  # converted to a table; the original is available
                size = int(row["originalFileSize"])
                files.append(RemoteFile(name, f"{file_url}?format=original", size))
            else:
                files.append(RemoteFile(name, file_url, int(row["filesize"]), row.get("md5")))
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{url}: unexpected answer: {error!r}") from None
    return files
