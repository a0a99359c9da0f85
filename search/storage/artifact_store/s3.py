"""Artifacts in an S3 bucket, through Optuna's artifact store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_path
from search.storage.artifact_store.base import MARKER, ArtifactStore, ArtifactStoreUnavailable

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore

#: Attempts to download a file; botocore repeats requests, but not reading the response.
_DOWNLOADS = 3
#: Error codes that no waiting mends; so is every response with status 403.
_REFUSED = frozenset({"AccessDenied", "InvalidBucketName", "PermanentRedirect"})


class _DownloadInterrupted(ArtifactStoreUnavailable):
    """A response that began and did not end."""


class S3ArtifactStore(ArtifactStore):
    """A bucket; this host's copies lie in the study's folder.

    An object appears when its upload is complete. The parts of an upload whose process was killed
    stay invisible but are billed: a lifecycle rule of the bucket deletes them.
    """

    is_local = False

    def __init__(self, folder: Path, bucket: str, prefix: str) -> None:
        self.root, self.bucket, self.prefix = folder, bucket, prefix
        self._store = _boto3_store(bucket)
        with self._translated_errors():
            self._store.client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/", MaxKeys=1)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def put(self, number: int, name: str) -> None:
        """Upload a file."""
        with self._path(number, name).open("rb") as file, self._translated_errors():
            self._store.write(self._key(f"{number}/{name}"), file)

    def fetch(self, number: int, name: str) -> Path | None:
        """Download a file."""
        path, key = self._path(number, name), self._key(f"{number}/{name}")
        for attempt in range(1, _DOWNLOADS + 1):
            try:
                return path if self._download(key, path) else None
            except _DownloadInterrupted:
                if attempt == _DOWNLOADS:
                    raise
        return None

    def delete(self, number: int, name: str) -> None:
        """Delete the object, then this host's copy."""
        path = self._path(number, name)
        with self._translated_errors():
            self._store.remove(self._key(f"{number}/{name}"))
        path.unlink(missing_ok=True)

    def list_files(self, number: int) -> list[str]:
        """Return the names of the objects below the trial's key."""
        return sorted(self._list_objects(self._key(f"{number}/")))

    def list_trials(self) -> list[int]:
        """Return the numbers in the objects' keys."""
        numbers = {key.partition("/")[0] for key in self._list_objects(self._key())}
        return sorted(int(number) for number in numbers if number.isdecimal())

    def total_bytes(self) -> int:
        """Return the size of all objects below ``trials``."""
        return sum(self._list_objects(self._key()).values())

    def _key(self, name: str = "") -> str:
        return f"{self.prefix}/trials/{name}"

    def _list_objects(self, prefix: str) -> dict[str, int]:
        """Return sizes by key without the prefix."""
        with self._translated_errors():
            pages = self._store.client.get_paginator("list_objects_v2")
            return {
                entry["Key"].removeprefix(prefix): entry["Size"]
                for page in pages.paginate(Bucket=self.bucket, Prefix=prefix)
                for entry in page.get("Contents", ())
            }

    def _open(self, key: str) -> BinaryIO | None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            return self._store.open_reader(key)
        except ArtifactNotFound as error:
            cause: Any = error.__cause__
            if cause.response["Error"].get("Code") == "NoSuchBucket":
                raise cause from None
            return None

    def _download(self, key: str, path: Path) -> bool:
        with self._translated_errors():
            body = self._open(key)
        if body is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(path, unique=True) as partial,
            partial.open("wb") as file,
            self._translated_errors(_DownloadInterrupted),
        ):
            shutil.copyfileobj(body, file, 1 << 20)
        return True

    def _read_marker(self) -> str | None:
        with self._translated_errors():
            body = self._open(self._key(MARKER))
            return None if body is None else body.read().decode()

    def _write_marker(self, study_id: str) -> None:
        with self._translated_errors():
            self._store.client.put_object(
                Bucket=self.bucket, Key=self._key(MARKER), Body=study_id.encode()
            )

    @contextmanager
    def _translated_errors(
        self, unavailable: type[ArtifactStoreUnavailable] = ArtifactStoreUnavailable
    ) -> Iterator[None]:
        """Raise boto3's errors as InputError where the user can mend them, else ``unavailable``."""
        from boto3.exceptions import Boto3Error
        from botocore import exceptions

        mendable = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.NoRegionError,
            exceptions.ProfileNotFound,
            exceptions.ParamValidationError,
            exceptions.CredentialRetrievalError,
        )
        try:
            yield
        except mendable as error:
            raise InputError(f"artifacts: {self}: {_one_line(error)}") from None
        except exceptions.ClientError as error:
            raise self._response_error(error) from None
        except (exceptions.BotoCoreError, exceptions.HTTPClientError, Boto3Error) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(error, Boto3Error) and isinstance(cause, exceptions.ClientError):
                raise self._response_error(cause) from None
            raise unavailable(f"artifacts: {self}: {_one_line(error)}") from None

    def _response_error(self, error: Any) -> Exception:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return InputError(f"artifacts: {self}: there is no bucket {self.bucket!r}; create it")
        if status == 403 or code in _REFUSED:
            return InputError(
                f"artifacts: {self}: not permitted ({code}); "
                "this host must list, get, put and delete objects there"
            )
        return ArtifactStoreUnavailable(f"artifacts: {self}: {_one_line(error)}")


def _boto3_store(bucket: str) -> Boto3ArtifactStore:
    try:
        import boto3
    except ModuleNotFoundError:
        raise InputError(
            "artifacts: s3:// needs the package boto3; install lesionsearch with its extra 's3'"
        ) from None
    from botocore.exceptions import BotoCoreError
    from optuna.artifacts import Boto3ArtifactStore

    try:
        client = boto3.client("s3")
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise InputError(f"artifacts: s3://{bucket}: {_one_line(error)}") from None
    # Files are opened for the upload alone: boto3 may close them and need not copy them.
    return Boto3ArtifactStore(bucket, client, avoid_buf_copy=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
