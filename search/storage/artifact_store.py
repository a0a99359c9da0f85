"""Where weights, checkpoints and histories of trials lie, so that other hosts find them.

A file of a trial is called by the trial's number and its own name, such as ``state.pt``. Under
the study's name it has the same key in every kind of store: ``<study>/trials/<n>/<name>``.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from lesionseg.errors import InputError

#: The file that says whose the store is, beside the trials' folders.
MARKER = ".study"
#: What is being written lies beside its place under a name that starts with this.
PART = ".part-"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class ArtifactStoreUnavailable(RuntimeError):
    """The store could not be reached, whatever botocore's retries; one line."""


def open_artifact_store(where: str | None, folder: Path, study: str | None = None) -> ArtifactStore:
    """The store of the study whose folder this is.

    where: None for the folder itself; the path of a folder that all hosts share; or
    ``s3://bucket/prefix``, where boto3 finds credentials, region and AWS_ENDPOINT_URL by itself.
    study: its name in the storage, where the folder is not called so on this host.

    InputError where it is none of them, boto3 is not installed, or the bucket cannot be used.
    """
    folder = folder.resolve()  # of "." too: its name is the study's
    study = study or folder.name
    if where is None:
        return FolderArtifactStore(folder)
    if not re.match(r"[A-Za-z0-9+.-]+:/", where):
        return FolderArtifactStore(Path(where).expanduser().resolve() / study)
    scheme, _, rest = where.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in rest:  # not shown: it may be a key
        raise InputError("artifacts: takes no credentials; boto3 finds them in the environment")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or "?" in prefix:
        raise InputError(
            f"artifacts: must be a folder or s3://bucket/prefix, got {where.partition('?')[0]!r}"
        )
    from search.storage.s3_artifacts import S3ArtifactStore

    prefix = "/".join(part for part in prefix.split("/") if part)
    return S3ArtifactStore(folder, bucket, f"{prefix}/{study}" if prefix else study)


class ArtifactStore(ABC):
    """The files of one study's trials. Names: letters, digits, ``_``, ``-`` and ``.``.

    Every method may raise InputError where the store refuses, and DepotLost where it is away.
    """

    #: The folder below which this host's files lie.
    root: Path
    #: Whether what is written to ``local`` is in the store already.
    is_local: bool

    def local_path(self, number: int, name: str) -> Path:
        """Where this host's processes write and read the file; its folder is made."""
        path = self._place(number, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _place(self, number: int, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a file's name is letters, digits, _, - and ., got {name!r}")
        return self.root / "trials" / str(number) / name

    @abstractmethod
    def put(self, number: int, name: str) -> None:
        """Makes what lies at ``local`` available to other hosts.

        FileNotFoundError where nothing lies there.
        """

    @abstractmethod
    def fetch(self, number: int, name: str) -> Path | None:
        """Makes the file be at ``local``, whole or not at all; None where the store has none.

        What the store has replaces what lies there.
        """

    @abstractmethod
    def delete(self, number: int, name: str) -> None:
        """Deletes it, here and in the store; nothing where there is none."""

    @abstractmethod
    def list_files(self, number: int) -> list[str]:
        """What the store has of a trial, sorted."""

    @abstractmethod
    def list_trials(self) -> list[int]:
        """The trials that it has anything of, sorted."""

    def delete_partial_files(self, number: int) -> None:
        """Deletes what was begun and never got whole, on this host."""
        for path in (self.root / "trials" / str(number)).glob(".*"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def delete_trial(self, number: int) -> None:
        """Deletes all that there is of a trial, here and in the store."""
        for name in self.list_files(number):
            self.delete(number, name)
        shutil.rmtree(self.root / "trials" / str(number), ignore_errors=True)

    @abstractmethod
    def total_bytes(self) -> int:
        """Bytes that the study takes in the store."""

    def claim_marker(self, study_id: str) -> None:
        """Marks the store as this study's; for who creates the study.

        InputError where it is another study's.
        """
        if self._marker() is None:
            self._mark(study_id)
        self.check_not_foreign(study_id)

    def check_not_foreign(self, study_id: str | None = None) -> None:
        """InputError where the store is marked as any study's but this one's."""
        if self._marker() not in {None, study_id}:
            raise InputError(
                f"artifacts: {self}: holds another study of this name; "
                "name another place or study, or delete what is there"
            )

    def check_marker(self, study_id: str) -> None:
        """InputError where this is not the place that the study's creator marked."""
        found = self._marker()
        if found != study_id:
            what = "holds nothing of the study" if found is None else "is another study's"
            raise InputError(
                f"artifacts: {self}: {what} as this host sees it; mount the folder that the study was "
                "created with at this path, or create the study with s3://bucket/prefix"
            )

    @abstractmethod
    def _marker(self) -> str | None: ...

    @abstractmethod
    def _mark(self, study_id: str) -> None: ...


class FolderArtifactStore(ArtifactStore):
    """A folder: the study's own, or one that all hosts share. What is written is there."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def put(self, number: int, name: str) -> None:
        """Nothing needs to be done."""
        self._place(number, name).stat()

    def fetch(self, number: int, name: str) -> Path | None:
        """It is there, or it is not."""
        path = self._place(number, name)
        return path if path.is_file() else None

    def delete(self, number: int, name: str) -> None:
        """Deletes it."""
        self._place(number, name).unlink(missing_ok=True)

    def list_files(self, number: int) -> list[str]:
        """Files that are not hidden."""
        folder = self.root / "trials" / str(number)
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(p.name for p in found if p.is_file() and _NAME.fullmatch(p.name))

    def list_trials(self) -> list[int]:
        """Their folders."""
        return _numbered(self.root / "trials")

    def total_bytes(self) -> int:
        """Bytes of all files below ``trials``."""
        total = 0
        for folder, _, names in os.walk(self.root / "trials"):
            for name in names:
                try:
                    total += os.stat(Path(folder, name)).st_size
                except FileNotFoundError:
                    continue  # another worker's, deleted meanwhile
        return total

    def _marker(self) -> str | None:
        try:
            return (self.root / "trials" / MARKER).read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"artifacts: {self}: cannot be read: {error.strerror}") from None

    def _mark(self, study_id: str) -> None:
        path = self.root / "trials" / MARKER
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{PART}{os.getpid()}")
            part.write_text(study_id)
            part.replace(path)
        except OSError as error:
            raise InputError(f"artifacts: {self}: cannot be written: {error.strerror}") from None


def _numbered(folder: Path) -> list[int]:
    """Folders that are called by a number."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(p.name) for p in found if p.name.isdecimal())
