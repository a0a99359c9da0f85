"""Where a study is. Importable without torch, for the jobs of clusters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lesionseg.data.merge import Roots


@dataclass(frozen=True)
class StudyLocation:
    """Where a process finds a study.

    name: of the study in its storage.
    folder: for histories, checkpoints and weights.
    storage: URL of the database with its password, therefore never shown; None for ``study.db`` in
        the folder.
    data: folders of the images; None for those that the study was created with.
    """

    name: str
    folder: Path
    storage: str | None = field(default=None, repr=False)
    data: Roots | None = None
