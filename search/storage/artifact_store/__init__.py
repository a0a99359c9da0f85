"""The files of a study's trials, in a place that all of its workers reach.

A file of a trial has the trial's number and a name such as ``state.pt``. Below the study's name
it has the same key in every kind of store: ``<study>/trials/<number>/<name>``.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_write, check_file_name

#: The file that holds the id of the store's study, beside the trials' folders.
MARKER = ".study"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class ArtifactStoreUnavailable(RuntimeError):
    """The store could not be reached, in spite of retries; one line."""


class ArtifactStore(ABC):
    """The files of one study's trials. Names consist of letters, digits, ``_``, ``-`` and ``.``.

    Every method may raise InputError if access is refused, and ArtifactStoreUnavailable.
    """

    #: The folder below which this host's files lie.
    root: Path
    #: Whether a file at ``local_path`` is in the store already.
    is_local: bool

    def local_path(self, number: int, name: str) -> Path:
        """Return where this host's processes write and read a file; its folder is created."""
        path = self._path(number, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @abstractmethod
    def put(self, number: int, name: str) -> None:
        """Make the file at ``local_path`` available to other hosts; it must exist."""

    @abstractmethod
    def fetch(self, number: int, name: str) -> Path | None:
        """Copy a file to ``local_path``, completely or not at all; None if the store lacks it."""

    @abstractmethod
    def delete(self, number: int, name: str) -> None:
        """Delete a file, here and in the store, if it exists."""

    def list_files(self, number: int) -> list[str]:
        """Return the names of a trial's files in the store, sorted."""
        return sorted(name for name in self._sizes(f"{number}/") if _NAME.fullmatch(name))

    def list_trials(self) -> list[int]:
        """Return the numbers of the trials that have files in the store, sorted."""
        numbers = {key.partition("/")[0] for key in self._sizes()}
        return sorted(int(number) for number in numbers if number.isdecimal())

    def total_bytes(self) -> int:
        """Return the size of the study's files in the store."""
        return sum(self._sizes().values())

    @abstractmethod
    def _sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of the stored files below a folder of ``trials``, by path in it."""

    def delete_partial_files(self, number: int) -> None:
        """Delete files of this host whose writing was interrupted."""
        for path in self._folder(number).glob(".*"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def delete_trial(self, number: int) -> None:
        """Delete all files of a trial, here and in the store."""
        for name in self.list_files(number):
            self.delete(number, name)
        shutil.rmtree(self._folder(number), ignore_errors=True)

    def claim_marker(self, study_id: str) -> None:
        """Mark the store as that of a new study; InputError if it is another study's."""
        if self._read_marker() is None:
            self._write_marker(study_id)
        self.check_not_foreign(study_id)

    def check_not_foreign(self, study_id: str | None = None) -> None:
        """Raise InputError if the store is marked as another study's than this one's."""
        if self._read_marker() not in {None, study_id}:
            raise InputError(
                f"artifacts: {self}: holds another study of this name; "
                "name another place or study, or delete what is there"
            )

    def check_marker(self, study_id: str) -> None:
        """Raise InputError if this is not the place that the study was created with."""
        marker = self._read_marker()
        if marker != study_id:
            problem = "holds nothing of the study" if marker is None else "is another study's"
            raise InputError(
                f"artifacts: {self}: {problem} as this host sees it; mount the folder that the "
                "study was created with at this path, or create the study with s3://bucket/prefix"
            )

    @abstractmethod
    def _read_marker(self) -> str | None: ...

    @abstractmethod
    def _write_marker(self, study_id: str) -> None: ...

    def _folder(self, number: int) -> Path:
        return self.root / "trials" / str(number)

    def _path(self, number: int, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a file's name is letters, digits, _, - and ., got {name!r}")
        return self._folder(number) / name


class FolderArtifactStore(ArtifactStore):
    """The study's own folder, or one that all hosts share; a written file is in the store."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def put(self, number: int, name: str) -> None:
        self._path(number, name).stat()

    def fetch(self, number: int, name: str) -> Path | None:
        path = self._path(number, name)
        return path if path.is_file() else None

    def delete(self, number: int, name: str) -> None:
        self._path(number, name).unlink(missing_ok=True)

    def _sizes(self, folder: str = "") -> dict[str, int]:
        top, sizes = self.root / "trials" / folder, {}
        for parent, _, names in os.walk(top):
            for path in (Path(parent, name) for name in names):
                with suppress(FileNotFoundError):  # deleted by another worker meanwhile
                    sizes[path.relative_to(top).as_posix()] = path.stat().st_size
        return sizes

    def _read_marker(self) -> str | None:
        try:
            marker = (self.root / "trials" / MARKER).read_text(encoding="utf-8", errors="replace")
            return marker.strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"artifacts: {self}: cannot be read: {error.strerror}") from None

    def _write_marker(self, study_id: str) -> None:
        path = self.root / "trials" / MARKER
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, study_id, unique=True)
        except OSError as error:
            raise InputError(f"artifacts: {self}: cannot be written: {error.strerror}") from None


def open_artifact_store(
    location: str | None, folder: Path, study: str | None = None
) -> ArtifactStore:
    """Open the artifact store of a study.

    Args:
        location: None for the study's folder; the path of a folder that all hosts share; or
            ``s3://bucket/prefix``, with credentials, region and AWS_ENDPOINT_URL as boto3 finds
            them.
        folder: of the study on this host.
        study: the study's name in the storage; None if it is the folder's.

    Raises:
        InputError: the location is none of these, boto3 is not installed, or the bucket cannot be
            used.
    """
    folder = folder.resolve()  # also of ".": its name is the study's
    if location is None:
        return FolderArtifactStore(folder)
    study = check_file_name(study or folder.name, "study", "give the study another name")
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
