"""Read-only Optuna artifact store with the trials' files of several studies.

An artifact id can only name one of ``artifact_ids.FILES`` of a trial. Symbolic links that lead
out of a study's artifact store are not followed.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage

from lesionseg.errors import InputError
from search.storage.artifact_ids import CURVES, ArtifactAddress, parse_artifact_id
from search.storage.artifact_store import (
    ArtifactStore,
    ArtifactStoreUnavailable,
    open_artifact_store,
)
from search.storage.trial_records import StudyAttr


class ArtifactReader:
    """Implements Optuna's ``ArtifactStore`` protocol.

    folder_of: returns the folder of a study by its name. A study whose files cannot be reached
    has no artifacts.
    """

    def __init__(self, storage: BaseStorage, folder_of: Callable[[str], Path]) -> None:
        self.storage, self.folder_of = storage, folder_of
        self._stores: dict[str, ArtifactStore] = {}
        self._downloads = tempfile.TemporaryDirectory(prefix="lesionsearch-")

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact; raise ArtifactNotFound if it does not exist."""
        try:
            artifact = parse_artifact_id(artifact_id)
            store = self._find_store(artifact.study_uuid) if artifact else None
            if artifact and store:
                path = store.fetch(artifact.number, artifact.file.source)
                if path and _is_within_store(path, store, artifact):
                    if artifact.file.name == CURVES:
                        return io.BytesIO(_draw_curves(path.read_text(encoding="utf-8")))
                    return path.open("rb")
        except (OSError, ValueError, InputError, ArtifactStoreUnavailable):
            pass
        raise ArtifactNotFound("not found")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise PermissionError("the dashboard does not write artifacts")

    def remove(self, artifact_id: str) -> None:
        raise PermissionError("the dashboard does not delete artifacts")

    def _find_store(self, study_uuid: str) -> ArtifactStore | None:
        for study in self.storage.get_all_studies() if study_uuid not in self._stores else ():
            if study.user_attrs.get(StudyAttr.UUID) == study_uuid:
                name, folder = study.study_name, self.folder_of(study.study_name)
                if not folder.is_dir():  # downloads from a bucket are deleted at the end
                    folder = Path(self._downloads.name) / study_uuid
                store = open_artifact_store(study.user_attrs.get(StudyAttr.ARTIFACTS), folder, name)
                store.check_marker(study_uuid)
                self._stores[study_uuid] = store
        return self._stores.get(study_uuid)


def _is_within_store(path: Path, store: ArtifactStore, artifact: ArtifactAddress) -> bool:
    """Return whether a path is a regular file and no link leads to another place."""
    expected = store.root.resolve() / "trials" / str(artifact.number) / artifact.file.source
    return path.resolve() == expected and path.is_file()


@lru_cache(maxsize=64)
def _draw_curves(history: str) -> bytes:
    from search.monitoring.dashboard.curves import draw_curves  # matplotlib is slow to import

    return draw_curves(history)
