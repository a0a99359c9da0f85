"""A trial's files as Optuna's artifacts, so that dashboards list them; nothing is stored twice.

An artifact's id says which file of the store it is: the study's own mark, the trial's number and
the file's place in KINDS. So no id can name anything but a trial's file of one of these names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from search.storage.retention import HISTORY, PICTURE

#: How Optuna calls the attribute of an artifact; the id follows.
PREFIX = "artifacts:"
#: Learning curves; drawn from the history when somebody looks.
CURVES = "curves.png"


class Kind(NamedTuple):
    """A file that trials have. source: the store's file that it is, or is drawn from."""

    name: str
    mimetype: str
    source: str


#: In the order in which they are shown. Ids hold places in it: new ones go to its end.
KINDS = (
    Kind(PICTURE, "image/jpeg", PICTURE),
    Kind(CURVES, "image/png", HISTORY),
    Kind(HISTORY, "text/csv", HISTORY),
)

_ID = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,8})-([0-9])")


class Address(NamedTuple):
    """Where an artifact is. mark: the study's user attribute ``uuid``; number: the trial's."""

    mark: str
    number: int
    kind: Kind


def artifact_attrs(mark: str, number: int, files: Collection[str]) -> dict[str, str]:
    """A trial's system attributes that tell of its files in the store, as Optuna writes them."""
    found = {}
    for place, kind in enumerate(KINDS):
        if kind.source in files:
            artifact = f"{mark}-{number}-{place}"
            meta = {"artifact_id": artifact, "filename": kind.name, "mimetype": kind.mimetype}
            found[PREFIX + artifact] = json.dumps({**meta, "encoding": None})
    return found


def address(artifact_id: str) -> Address | None:
    """What an id stands for; None for one that is not ours."""
    match = _ID.fullmatch(artifact_id)
    if match is None or int(match[3]) >= len(KINDS):
        return None
    return Address(match[1], int(match[2]), KINDS[int(match[3])])


def list_artifacts(system_attrs: Mapping[str, Any], *, pictured: bool) -> list[dict[str, Any]]:
    """What a trial's system attributes tell of its files, in the order of KINDS.

    pictured: whether its picture is kept still. Files of other makers are left as they are told.
    """
    told = [json.loads(text) for key, text in system_attrs.items() if key.startswith(PREFIX)]
    known = [meta for meta in told if isinstance(meta, dict)]
    places = {kind.name: place for place, kind in enumerate(KINDS)}
    kept = [meta for meta in known if pictured or meta.get("filename") != PICTURE]
    return sorted(kept, key=lambda meta: places.get(meta.get("filename", ""), len(places)))
