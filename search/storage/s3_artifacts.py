"""A store in an S3 bucket, through Optuna's artifact store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lesionseg.errors import InputError
from search.storage.artifact_store import MARKER, PART, ArtifactStore, ArtifactStoreUnavailable

if TYPE_CHECKING:
    from optuna.artifacts import Boto3ArtifactStore

#: A download that broke off is begun again; botocore repeats requests, not what follows them.
_DOWNLOADS = 3
#: Answers that no waiting mends; every 403 is one as well.
_REFUSED = frozenset({"AccessDenied", "InvalidBucketName", "PermanentRedirect"})


class _BrokeOff(ArtifactStoreUnavailable):
    """An answer that began and did not end."""


class S3ArtifactStore(ArtifactStore):
    """A bucket, through Optuna's artifact store; this host's copies lie in the study's folder.

    An object appears when its upload is complete. Parts of an upload whose process was killed
    stay invisible, but are paid for: a lifecycle rule of the bucket deletes them.
    """

    is_local = False

    def __init__(self, folder: Path, bucket: str, prefix: str) -> None:
        self.root, self.bucket, self.prefix = folder, bucket, prefix
        self._store = _boto3_store(bucket)
        with self._told():
            self._client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/", MaxKeys=1)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def put(self, number: int, name: str) -> None:
        """Uploads it."""
        with self._place(number, name).open("rb") as file, self._told():
            self._store.write(self._key(number, name), file)

    def fetch(self, number: int, name: str) -> Path | None:
        """Downloads it."""
        path = self._place(number, name)
        for left in reversed(range(_DOWNLOADS)):
            try:
                return path if self._download(self._key(number, name), path) else None
            except _BrokeOff:
                if left == 0:
                    raise
        return None

    def delete(self, number: int, name: str) -> None:
        """Deletes the object, then this host's copy."""
        copy = self._place(number, name)
        with self._told():
            self._store.remove(self._key(number, name))
        copy.unlink(missing_ok=True)

    def list_files(self, number: int) -> list[str]:
        """Objects below the trial's key."""
        start = f"{self.prefix}/trials/{number}/"
        return sorted(key.removeprefix(start) for key, _ in self._objects(start))

    def list_trials(self) -> list[int]:
        """Those of the objects' keys."""
        start = f"{self.prefix}/trials/"
        first = {key.removeprefix(start).partition("/")[0] for key, _ in self._objects(start)}
        return sorted(int(part) for part in first if part.isdecimal())

    def total_bytes(self) -> int:
        """Bytes of all objects below ``trials``."""
        return sum(size for _, size in self._objects(f"{self.prefix}/trials/"))

    @property
    def _client(self) -> Any:
        return self._store.client

    def _key(self, number: int, name: str) -> str:
        return f"{self.prefix}/trials/{number}/{name}"

    def _objects(self, start: str) -> list[tuple[str, int]]:
        with self._told():
            pages = self._client.get_paginator("list_objects_v2")
            listed = pages.paginate(Bucket=self.bucket, Prefix=start)
            return [(o["Key"], o["Size"]) for page in listed for o in page.get("Contents", ())]

    def _read(self, key: str) -> BinaryIO | None:
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            return self._store.open_reader(key)
        except ArtifactNotFound as error:
            cause: Any = error.__cause__
            if cause.response["Error"].get("Code") == "NoSuchBucket":
                raise cause from None
            return None

    def _download(self, key: str, path: Path) -> bool:
        with self._told():
            body = self._read(key)
        if body is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PART, delete=False) as part:
            try:
                with self._told(_BrokeOff):
                    shutil.copyfileobj(body, part, 1 << 20)
                part.close()
                os.chmod(part.name, 0o644)  # tempfile's is for its owner alone
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
        return True

    def _marker(self) -> str | None:
        with self._told():
            body = self._read(f"{self.prefix}/trials/{MARKER}")
            return None if body is None else body.read().decode()

    def _mark(self, study_id: str) -> None:
        with self._told():
            key = f"{self.prefix}/trials/{MARKER}"
            self._client.put_object(Bucket=self.bucket, Key=key, Body=study_id.encode())

    @contextmanager
    def _told(
        self, lost: type[ArtifactStoreUnavailable] = ArtifactStoreUnavailable
    ) -> Iterator[None]:
        """Says in one line what the bucket's trouble is, and whether the user can mend it."""
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as known

        mendable = (
            *(known.NoCredentialsError, known.PartialCredentialsError, known.NoRegionError),
            *(known.ProfileNotFound, known.ParamValidationError, known.CredentialRetrievalError),
        )
        try:
            yield
        except mendable as error:
            raise InputError(f"artifacts: {self}: {_line(error)}") from None
        except known.ClientError as error:
            raise self._answer(error) from None
        except (known.BotoCoreError, known.HTTPClientError, Boto3Error) as error:
            cause = error.__cause__ or error.__context__
            if isinstance(error, Boto3Error) and isinstance(cause, known.ClientError):
                raise self._answer(cause) from None
            raise lost(f"artifacts: {self}: {_line(error)}") from None

    def _answer(self, error: Any) -> Exception:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return InputError(f"artifacts: {self}: there is no bucket {self.bucket!r}; create it")
        if status == 403 or code in _REFUSED:
            need = "list, get, put and delete objects there"
            return InputError(f"artifacts: {self}: not permitted ({code}); this host must {need}")
        return ArtifactStoreUnavailable(f"artifacts: {self}: {_line(error)}")


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
    except (BotoCoreError, ValueError) as error:  # the latter for an endpoint that is no URL
        raise InputError(f"artifacts: s3://{bucket}: {_line(error)}") from None
    # Files are opened for the upload alone: it may close them, and need not copy them to memory.
    return Boto3ArtifactStore(bucket, client, avoid_buf_copy=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
