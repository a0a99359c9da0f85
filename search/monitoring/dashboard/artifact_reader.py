"""Trials' files for a dashboard: an Optuna artifact store that reads the stores of studies.

It only reads. An id can name nothing but a trial's file of a known name (``search.storage.artifact_ids``),
and what is not a plain file in that very place, such as a link to elsewhere, is not there.
"""

from __future__ import annotations

import io
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage

from lesionseg.errors import InputError
from search.storage.artifact_ids import CURVES, Address, address
from search.storage.artifact_store import (
    ArtifactStore,
    ArtifactStoreUnavailable,
    open_artifact_store,
)


class ArtifactReader:
    """What ``optuna.artifacts`` calls a store.

    storage: where the studies are. folders: the folder of a study by its name, where this host
    has it. A study whose files cannot be reached from here simply shows none.
    """

    def __init__(self, storage: BaseStorage, folders: dict[str, Path], root: Path) -> None:
        self.storage, self.folders, self.root = storage, folders, root
        self._stores: dict[str, ArtifactStore] = {}
        self._copies = tempfile.TemporaryDirectory(prefix="lesionsearch-")

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The file's bytes; ArtifactNotFound where it is not there, or is none of ours."""
        where = address(artifact_id)
        store = self._depot(where.mark) if where else None
        try:
            path = store.fetch(where.number, where.kind.source) if store and where else None
            if (
                path is None
                or where is None
                or store is None
                or not _is_at(path, store.root, where)
            ):
                raise ArtifactNotFound("not found")
            if where.kind.name == CURVES:
                return io.BytesIO(_curves(path.read_text(encoding="utf-8")))
            return path.open("rb")
        except (OSError, ValueError, InputError, ArtifactStoreUnavailable):
            raise ArtifactNotFound("not found") from None

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Nobody writes here: trials' files are their workers' own."""
        raise PermissionError("a trial's files are written by its worker alone")

    def remove(self, artifact_id: str) -> None:
        """Nothing is deleted from here."""
        raise PermissionError("a trial's files are deleted by its study's workers alone")

    def _depot(self, mark: str) -> ArtifactStore | None:
        if mark not in self._stores:
            for study in self.storage.get_all_studies():
                if study.user_attrs.get("uuid") == mark:
                    self._open(mark, study.study_name, study.user_attrs.get("artifacts"))
        return self._stores.get(mark)

    def _open(self, mark: str, name: str, where: str | None) -> None:
        folder = self.folders.get(name, self.root / name)
        if not folder.is_dir():  # what a bucket has is fetched to where it is cleared away
            folder = Path(self._copies.name) / mark
        try:
            store = open_artifact_store(where, folder, name)
            store.check_marker(mark)
        except (InputError, ArtifactStoreUnavailable):
            return
        self._stores[mark] = store


def _is_at(path: Path, root: Path, where: Address) -> bool:
    """Whether it is a file in its very place, no link on the way out of the store."""
    place = root.resolve() / "trials" / str(where.number) / where.kind.source
    return path.resolve() == place and path.is_file()


@lru_cache(maxsize=64)
def _curves(history: str) -> bytes:
    from search.monitoring.dashboard.curves import (
        draw_curves,  # matplotlib waits until somebody looks
    )

    return draw_curves(history)
