"""Where a study is: its name, folder, storage and data, as one process sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lesionseg.data.sets import Roots


@dataclass(frozen=True)
class StudyLocation:
    """Where a study is, as a process of this or of another host sees it.

    name: the study's, in the storage. folder: where histories, checkpoints and weights are put.
    storage: the database's URL, password included, which is why it is never shown; None for
    ``study.db`` in the folder. data: the images, or those of several data sets; None for where the
    study's creator had them.
    """

    name: str
    folder: Path
    storage: str | None = field(default=None, repr=False)
    data: Roots | None = None
