"""Where a study is. Importable without torch, for the jobs of clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lesionseg.data.merge import Roots
from lesionseg.errors import InputError
from search.storage.study_dir import is_study

#: Folder of the studies that are given by their names.
RUNS = Path("runs")


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


def find_run(name: str) -> Path:
    """Return the folder of a study by its path or its name under ``runs/``.

    A folder is a study if it has a run.json. InputError if there is none.
    """
    return find_place(name, is_study, "study")


def find_place(name: str, is_wanted: Callable[[Path], bool], what: str) -> Path:
    """Return the path ``name`` or else the name under ``runs/``, if it is wanted.

    A folder of another kind, such as a folder of images, does not hide a study of the same name.

    Raises:
        InputError: neither of them is wanted. what: the noun for the message.
    """
    places = list(dict.fromkeys((Path(name), RUNS / name)))  # equal if the path is absolute
    for place in places:
        if is_wanted(place):
            return place
    looked_in, listed = " and ".join(map(str, places)), ", ".join(list_runs()) or "none"
    raise InputError(f"no {what} {name!r}: looked in {looked_in} (studies under {RUNS}/: {listed})")


def list_runs() -> list[str]:
    """Return the names of the studies under ``runs/``."""
    return sorted(path.parent.name for path in RUNS.glob("*/run.json"))
