"""Artifacts in an S3 bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError
from lesionseg.runtime.files import atomic_path
from search.storage.artifact_store import MARKER, ArtifactStore, ArtifactStoreUnavailable

#: Error codes that no waiting mends; so is every response with status 403.
_REFUSED = frozenset({"AccessDenied", "InvalidBucketName", "PermanentRedirect"})


class S3ArtifactStore(ArtifactStore):
    """A bucket; this host's copies lie in the study's folder.

    An object appears when its upload is complete. The parts of an upload whose process was killed
    stay invisible but are billed: a lifecycle rule of the bucket deletes them.
    """

    is_local = False

    def __init__(self, folder: Path, bucket: str, prefix: str) -> None:
        try:
            import boto3
        except ModuleNotFoundError:
            raise InputError(
                "artifacts: s3:// needs the package boto3; install lesionsearch with its extra 's3'"
            ) from None
        self.root, self.bucket, self.prefix = folder, bucket, prefix
        with self._translated_errors():
            self._client = boto3.client("s3")
            self._client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/", MaxKeys=1)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def put(self, number: int, name: str) -> None:
        with self._path(number, name).open("rb") as file, self._translated_errors():
            self._client.upload_fileobj(file, self.bucket, self._key(f"{number}/{name}"))

    def fetch(self, number: int, name: str) -> Path | None:
        path = self._path(number, name)
        if name not in self.list_files(number):  # which tells a missing bucket from a missing file
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated_errors(), atomic_path(path, unique=True) as partial:
            # boto3 repeats the reading of a response that breaks off.
            self._client.download_file(self.bucket, self._key(f"{number}/{name}"), str(partial))
        return path

    def delete(self, number: int, name: str) -> None:
        path = self._path(number, name)
        with self._translated_errors():
            self._client.delete_object(Bucket=self.bucket, Key=self._key(f"{number}/{name}"))
        path.unlink(missing_ok=True)

    def _key(self, name: str = "") -> str:
        return f"{self.prefix}/trials/{name}"

    def _sizes(self, folder: str = "") -> dict[str, int]:
        prefix = self._key(folder)
        with self._translated_errors():
            pages = self._client.get_paginator("list_objects_v2")
            return {
                entry["Key"].removeprefix(prefix): entry["Size"]
                for page in pages.paginate(Bucket=self.bucket, Prefix=prefix)
                for entry in page.get("Contents", ())
            }

    def _read_marker(self) -> str | None:
        with self._translated_errors():
            try:
                marker = self._client.get_object(Bucket=self.bucket, Key=self._key(MARKER))
            except self._client.exceptions.NoSuchKey:
                return None
            return str(marker["Body"].read().decode(errors="replace")).strip() or None

    def _write_marker(self, study_id: str) -> None:
        with self._translated_errors():
            self._client.put_object(
                Bucket=self.bucket, Key=self._key(MARKER), Body=study_id.encode()
            )

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise boto3's errors as InputError if the user can mend them, else as unavailable."""
        from boto3.exceptions import Boto3Error
        from botocore import exceptions

        mendable = (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.NoRegionError,
            exceptions.ProfileNotFound,
            exceptions.ParamValidationError,
            exceptions.CredentialRetrievalError,
            ValueError,  # an endpoint that is no URL
        )
        try:
            yield
        except mendable as error:
            raise InputError(f"artifacts: {self}: {_one_line(error)}") from None
        except exceptions.ClientError as error:
            raise self._response_error(error) from None
        except (exceptions.BotoCoreError, Boto3Error) as error:
            cause = getattr(error, "last_exception", error)  # of a download's last attempt
            raise ArtifactStoreUnavailable(f"artifacts: {self}: {_one_line(cause)}") from None

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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
