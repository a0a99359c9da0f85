"""Read-only Optuna artifact store with the trials' files of several studies.

An artifact id can only name one of ``artifact_ids.FILES`` of a trial. Symbolic links that lead
out of a study's artifact store are not followed.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage

from search.storage.artifact_ids import CURVES, ArtifactAddress, parse_artifact_id
from search.storage.artifact_store import (
    ArtifactStore,
    ArtifactStoreUnavailable,
    open_artifact_store,
)
from search.storage.trial_records import StudyAttr

#: Colours of the Okabe-Ito palette, which colour-blind people can distinguish.
BLUE, GREEN, ORANGE, GREY = "#0072b2", "#009e73", "#e69f00", "#5b6570"
SIZE_INCHES, DPI = (7.2, 2.6), 110
#: Title of each panel of the curves, and key, label and colour of its lines.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("loss", (("train_loss", "training", GREEN), ("val_loss", "validation", BLUE))),
    ("validation", (("dice", "Dice", BLUE), ("jaccard", "Jaccard", ORANGE))),
    ("learning rate", (("lr", "", GREY),)),
)


class ArtifactReader:
    """Implements Optuna's ``ArtifactStore`` protocol.

    folder_of: returns the folder of a study by its name. A study whose files cannot be reached
    has no artifacts.
    """

    def __init__(self, storage: BaseStorage, folder_of: Callable[[str], Path]) -> None:
        self.storage, self.folder_of = storage, folder_of
        self._stores: dict[str, ArtifactStore] = {}
        self._downloads = Path(tempfile.mkdtemp(prefix="lesionsearch-"))
        weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact; raise ArtifactNotFound if it does not exist."""
        try:
            artifact = parse_artifact_id(artifact_id)
            store = self._find_store(artifact.study_uuid) if artifact else None
            if artifact and store:
                path = store.fetch(artifact.number, artifact.file.source)
                if path and _is_within_store(path, store, artifact):
                    if artifact.file.name == CURVES:
                        return io.BytesIO(draw_curves(path.read_text(encoding="utf-8")))
                    return path.open("rb")
        except (OSError, ValueError, csv.Error, ArtifactStoreUnavailable):
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
                    folder = self._downloads / study_uuid
                store = open_artifact_store(study.user_attrs.get(StudyAttr.ARTIFACTS), folder, name)
                store.check_marker(study_uuid)
                self._stores[study_uuid] = store
        return self._stores.get(study_uuid)


def _is_within_store(path: Path, store: ArtifactStore, artifact: ArtifactAddress) -> bool:
    """Return whether a path is a regular file and no link leads to another place."""
    expected = store.root.resolve() / "trials" / str(artifact.number) / artifact.file.source
    return path.resolve() == expected and path.is_file()


@lru_cache(maxsize=64)
def draw_curves(history: str) -> bytes:
    """Draw losses, metrics and learning rate by epoch, with a line per fold.

    Args:
        history: content of a trial's history.csv.

    Returns:
        A PNG file.

    Raises:
        ValueError, csv.Error: ``history`` is not a table of epochs.
    """
    import matplotlib as mpl  # slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [
        {key: float(value) for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(history), strict=True)
        if None not in row and None not in row.values()
    ]
    if not rows or "epoch" not in rows[0]:
        raise ValueError("not a table of epochs")
    folds = sorted({row.get("fold", 1.0) for row in rows})
    stream = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # independent of a user's matplotlibrc
        mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        for position, (title, lines) in enumerate(_PANELS, 1):
            axes = figure.add_subplot(1, len(_PANELS), position)
            axes.set_title(title, fontsize=8, loc="left", color=GREY)
            axes.set_xlabel("epoch", color=GREY)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.grid(axis="y", color="#d9dee3", linewidth=0.5)
            for (key, label, colour), (i, fold) in itertools.product(lines, enumerate(folds)):
                points = [
                    (row["epoch"], row[key])
                    for row in rows
                    if row.get("fold", 1.0) == fold and math.isfinite(row.get(key, math.nan))
                ]
                # Lines of folds after the first are thin and pale.
                axes.plot([x for x, _ in points], [y for _, y in points], ms=4, color=colour,
                          marker="o" if len(points) == 1 else "", lw=0.8 if i else 1.3,
                          alpha=0.5 if i else 1.0, label="" if i else label)  # fmt: skip
            if any(label for _, label, _ in lines):
                axes.legend(frameon=False, fontsize=7)
        figure.savefig(stream, format="png")
    return stream.getvalue()
