"""A trial's files as Optuna's artifacts, so that dashboards list them; nothing is stored twice.

An artifact's id consists of the study's uuid, the trial's number and the file's index in FILES.
No id can name anything but a file of a trial with one of these names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from search.storage.retention import HISTORY, PICTURE

#: The key of Optuna's attribute for an artifact, without the id that follows.
PREFIX = "artifacts:"
#: Learning curves, which are drawn from the history on request.
CURVES = "curves.png"


class ArtifactFile(NamedTuple):
    """A file of a trial. source: the file in the store that it is, or is drawn from."""

    name: str
    mimetype: str
    source: str


#: In the order in which they are shown. Ids contain indices: new files go to the end.
FILES = (
    ArtifactFile(PICTURE, "image/jpeg", PICTURE),
    ArtifactFile(CURVES, "image/png", HISTORY),
    ArtifactFile(HISTORY, "text/csv", HISTORY),
)

_ID = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,8})-([0-9])")


class ArtifactAddress(NamedTuple):
    """What an id names. study_uuid: the study's user attribute ``uuid``."""

    study_uuid: str
    number: int
    file: ArtifactFile


def artifact_attrs(study_uuid: str, number: int, names: Collection[str]) -> dict[str, str]:
    """Return the system attributes that list a trial's files, as Optuna writes them."""
    attrs = {}
    for index, file in enumerate(FILES):
        if file.source in names:
            artifact_id = f"{study_uuid}-{number}-{index}"
            attrs[PREFIX + artifact_id] = json.dumps(
                {
                    "artifact_id": artifact_id,
                    "filename": file.name,
                    "mimetype": file.mimetype,
                    "encoding": None,
                }
            )
    return attrs


def parse_artifact_id(artifact_id: str) -> ArtifactAddress | None:
    """Return what an id names; None for an id of another program."""
    match = _ID.fullmatch(artifact_id)
    if match is None or int(match[3]) >= len(FILES):
        return None
    return ArtifactAddress(match[1], int(match[2]), FILES[int(match[3])])


def list_artifacts(system_attrs: Mapping[str, Any], *, with_picture: bool) -> list[dict[str, Any]]:
    """Return the artifacts in a trial's system attributes, in the order of FILES.

    Artifacts of other programs come last. with_picture: whether the picture still exists.
    """
    parsed = [json.loads(text) for key, text in system_attrs.items() if key.startswith(PREFIX)]
    artifacts = [
        artifact
        for artifact in parsed
        if isinstance(artifact, dict) and (with_picture or artifact.get("filename") != PICTURE)
    ]
    index = {file.name: i for i, file in enumerate(FILES)}
    return sorted(artifacts, key=lambda a: index.get(a.get("filename", ""), len(index)))
