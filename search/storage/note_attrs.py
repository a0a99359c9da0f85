"""Notes of optuna-dashboard as system attributes of a study.

Optuna-dashboard stores a note in parts under ``dashboard:note_str:0``, ``dashboard:note_str:1``,
..., with a version under ``dashboard:note_ver``. Keys of a trial's note contain the trial's id:
``dashboard:17:note_str:0``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from search.storage.optuna_internals import trial_id as get_trial_id

#: Largest number of characters in one attribute, as optuna-dashboard splits notes.
PART_LENGTH = 2045

_TRIAL_NOTE = re.compile(r"dashboard:(\d+):(note_.+)")


def note_attrs(
    trial_id: int | None, text: str, version: int = 1, existing: Iterable[str] = ()
) -> dict[str, Any]:
    """Return a note as system attributes; trial_id: None for the study's own note.

    existing: keys in the storage; parts of a longer note that is replaced become empty.
    """
    parts = split_text(f"{_prefix(trial_id)}note_str:", text, existing)
    return {**parts, version_key(trial_id): version}


def split_text(prefix: str, text: str, existing: Iterable[str] = ()) -> dict[str, str]:
    """Return a text in parts: ``<prefix>0``, ``<prefix>1``, ...

    existing: keys in the storage. Those with the prefix that have no part become empty.
    """
    starts = range(0, len(text), PART_LENGTH)
    parts = {f"{prefix}{i}": text[at : at + PART_LENGTH] for i, at in enumerate(starts)}
    return {**{key: "" for key in existing if key.startswith(prefix)}, **parts}


def version_key(trial_id: int | None) -> str:
    """Return the attribute that counts the versions of a note."""
    return f"{_prefix(trial_id)}note_ver"


def find_trials_without_note(
    system_attrs: Mapping[str, Any], trials: Iterable[FrozenTrial]
) -> list[FrozenTrial]:
    """Return the finished trials that have no note yet."""
    finished = [t for t in trials if t.state.is_finished()]
    return [t for t in finished if version_key(get_trial_id(t)) not in system_attrs]


def group_notes(system_attrs: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the attributes of each trial's note by the trial's id, in one pass."""
    groups: dict[int, dict[str, Any]] = {}
    for key, value in system_attrs.items():
        if note := _TRIAL_NOTE.fullmatch(key):
            groups.setdefault(int(note[1]), {})[key] = value
    return groups


def renumber_notes(system_attrs: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return a study's system attributes with new trial ids in the notes' keys.

    new_ids: by old ones. Notes of other trials are dropped.
    """
    renumbered = {}
    for key, value in system_attrs.items():
        note = _TRIAL_NOTE.fullmatch(key)
        if note is None:
            renumbered[key] = value
        elif int(note[1]) in new_ids:
            renumbered[f"{_prefix(new_ids[int(note[1])])}{note[2]}"] = value
    return renumbered


def _prefix(trial_id: int | None) -> str:
    return "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
