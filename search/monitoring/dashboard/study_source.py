"""Which studies the dashboard shows, and from which storage and folders."""

from __future__ import annotations

from pathlib import Path

import optuna

from lesionseg.errors import InputError
from search.monitoring.status import find_run, list_runs
from search.storage.database import (
    mask_password,
    open_for_reading,
    open_storage,
    storage_from_environment,
    storage_url,
)
from search.storage.optuna_internals import CachedStorage, FrozenStudy
from search.storage.retrying_storage import RetryingStorage, backend_of
from search.study.opening import load_study

#: Seconds that a request waits for an unavailable database.
TIMEOUT_S = 5.0


class DashboardStorage(CachedStorage):
    """A storage that reads each finished trial once, and lists the study ``only`` or all.

    writer: the storage for notes and figures; reads have their own connections. folder: that of
    the study ``only``; None for ``runs/<name>``.
    """

    def __init__(
        self, writer: RetryingStorage, only: str | None = None, folder: Path | None = None
    ) -> None:
        reader = open_for_reading(writer)
        reader.timeout_s = writer.timeout_s = TIMEOUT_S
        super().__init__(reader)
        self.writer, self.only, self.folder = writer, only, folder

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = super().get_all_studies()
        return [s for s in studies if self.only is None or s.study_name == self.only]

    def folder_of(self, name: str) -> Path:
        """Return the folder of a study; it need not exist on this host."""
        return self.folder or Path("runs") / name


def find_source(
    name: str | None, storage: str | None = None, folder: Path | None = None
) -> DashboardStorage:
    """Find the studies to show: one by name or folder, all of a storage, or the only run.

    Args:
        name: name or folder of a study; None for all studies of the storage or, without a
            storage, the only study under ``runs/``.
        storage: database URL; None for the one in the environment.
        folder: folder of the study, if its name differs from the study's.

    Raises:
        InputError: there is no such study or storage.
    """
    url = storage or storage_from_environment()
    if name is None and folder is None:
        if url:
            return DashboardStorage(_open_existing(url, Path("runs")))
        names = list_runs()
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise InputError(f"name a study (under runs/: {listed}), or give a --storage")
        name = names[0]
    try:
        run = find_run(str(folder or name))
    except InputError:
        if not url or name is None:
            raise
        writer = _open_existing(url, folder or Path("runs") / name)
        if name not in optuna.get_all_study_names(writer):
            raise InputError(f"the storage has no study {name!r}; check the name") from None
        return DashboardStorage(writer, name, folder)
    study = load_study(run, storage=storage)
    return DashboardStorage(backend_of(study), study.study_name, run)


def _open_existing(storage: str, folder: Path) -> RetryingStorage:
    url = storage_url(storage, folder)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        # Opening it would create an empty database.
        raise InputError(f"storage: {mask_password(url)}: no such file")
    return open_storage(url)
