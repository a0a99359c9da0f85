"""Where the weights, checkpoints and histories of trials are kept."""

from __future__ import annotations

import re
from pathlib import Path

from lesionseg.errors import InputError
from search.storage.artifact_store.base import ArtifactStore, ArtifactStoreUnavailable
from search.storage.artifact_store.folder import FolderArtifactStore

__all__ = [
    "ArtifactStore",
    "ArtifactStoreUnavailable",
    "FolderArtifactStore",
    "open_artifact_store",
]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def open_artifact_store(
    location: str | None, folder: Path, study: str | None = None
) -> ArtifactStore:
    """Open the artifact store of a study.

    Args:
        location: None for the study's folder; the path of a folder that all hosts share; or
            ``s3://bucket/prefix``, with credentials, region and AWS_ENDPOINT_URL as boto3 finds
            them.
        folder: of the study on this host.
        study: the study's name in the storage; None where it is the folder's.

    Raises:
        InputError: the location is none of these, boto3 is not installed, or the bucket cannot be
            used.
    """
    folder = folder.resolve()  # also of ".": its name is the study's
    study = study or folder.name
    if location is None:
        return FolderArtifactStore(folder)
    if not re.match(r"[A-Za-z0-9+.-]+:/", location):
        return FolderArtifactStore(Path(location).expanduser().resolve() / study)
    scheme, _, rest = location.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in rest:  # not quoted: it may be a key
        raise InputError("artifacts: takes no credentials; boto3 finds them in the environment")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or "?" in prefix:
        raise InputError(
            f"artifacts: must be a folder or s3://bucket/prefix, got {location.partition('?')[0]!r}"
        )
    from search.storage.artifact_store.s3 import S3ArtifactStore  # boto3 is optional

    keys = [part for part in prefix.split("/") if part]
    return S3ArtifactStore(folder, bucket, "/".join([*keys, study]))
