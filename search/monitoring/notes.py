"""What a trial's note says, and how it gets to where optuna-dashboard looks for it.

A note is Markdown. Whatever comes from files, libraries or people is shown as plain text: see
``plain``. What is said of a trial follows from its record alone, so that whoever writes its note
writes the same. Optuna-dashboard keeps notes among the study's system attributes, which can be
written when a trial has ended too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from lesionseg.config import DEFAULTS
from search.storage import trial_records
from search.storage.optuna_internals import trial_id

#: Lines of a failed training's traceback that its note shows.
TRACE_LINES = 8
#: Characters that optuna-dashboard puts into one attribute.
_CHUNK = 2045

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")

Row = Sequence[object]


def plain(value: object) -> str:
    """Text that Markdown shows as it is, in one line, be it of links, HTML or tables."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(str(value).split()))


def code(lines: Iterable[str]) -> str:
    """Lines that Markdown shows as they are, in a block of their own."""
    return "\n".join(f"    {line.rstrip()}" for line in lines)


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table whose cells are shown as they are."""
    lines = [tuple(map(plain, head)), ("---",) * len(head)]
    lines += [tuple(map(plain, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_trial(trial: FrozenTrial) -> str:
    """A trial's note: how it ended, what it trained, what it gave and what it cost."""
    attrs = trial.user_attrs
    parts = [_headline(trial)]
    if attrs.get("message"):
        parts.append(f"> {plain(attrs['message'])}")
    if "val" in attrs:
        rows = [(name.replace("_", " "), f"{value:.4f}") for name, value in attrs["val"].items()]
        folds = trial_records.folds_of(trial)
        where = (
            f"mean of {len(folds['dice'])} folds" if folds else f"epoch {attrs.get('best_epoch')}"
        )
        parts.append(table((f"validation, {where}", ""), rows))
        if folds:
            pairs = zip(folds["dice"], folds["best_epochs"], strict=True)
            told = [(n, f"{dice:.4f}", epoch) for n, (dice, epoch) in enumerate(pairs, 1)]
            parts.append(table(("fold", "Dice", "best epoch"), told))
    if "config" in attrs:
        parts.append(table(("configuration", ""), _configuration(attrs["config"])))
    cost = list(_cost(attrs))
    if cost:
        parts.append(table(("cost", ""), cost))
    if attrs.get("trace"):
        parts.append(code(attrs["trace"].splitlines()[-TRACE_LINES:]))
    return "\n\n".join(parts) + "\n"


def attrs_of(trial: FrozenTrial) -> dict[str, Any]:
    """The study's system attributes that hold the note of a trial that ended."""
    return as_attrs(trial_id(trial), of_trial(trial)) if trial.state.is_finished() else {}


def as_attrs(trial_id: int | None, text: str, version: int = 1) -> dict[str, Any]:
    """A note as optuna-dashboard keeps it; trial_id: None for the study's own."""
    parts = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
    told = {f"{_prefix(trial_id)}note_str:{place}": part for place, part in enumerate(parts)}
    return {**told, version_key(trial_id): version}


def version_key(trial_id: int | None) -> str:
    """The attribute that says how often a note was written."""
    return f"{_prefix(trial_id)}note_ver"


def missing(system_attrs: Mapping[str, Any], known: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that ended without a note: with a worker that died, or long ago."""
    ended = [t for t in known if t.state.is_finished()]
    return [t for t in ended if version_key(trial_id(t)) not in system_attrs]


def by_trial(system_attrs: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The attributes of each trial's note, by the trial's id: a study has many, a note few."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in system_attrs.items():
        head, _, rest = key.partition(":")
        trial_id, _, what = rest.partition(":")
        if head == "dashboard" and trial_id.isdecimal() and what.startswith("note_"):
            found.setdefault(int(trial_id), {})[key] = value
    return found


def renumbered(system_attrs: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """A study's system attributes with notes of other trial ids; those of none are left out."""
    own = by_trial(system_attrs)
    of_trials = {key for attrs in own.values() for key in attrs}
    moved = {
        _prefix(numbers[i]) + key.removeprefix(_prefix(i)): value
        for i, attrs in own.items()
        if i in numbers
        for key, value in attrs.items()
    }
    return {k: v for k, v in system_attrs.items() if k not in of_trials} | moved


def shown(plain_pick: Mapping[str, Mapping[str, Any]]) -> str:
    """A pick as people write it: ``unet, width 16, depth 4``."""
    (name, params), *_ = plain_pick.items()
    return ", ".join([name, *(f"{key} {short(value)}" for key, value in params.items())])


def short(value: object) -> str:
    """A number with three digits that mean something."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _prefix(trial_id: int | None) -> str:
    return "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"


def _headline(trial: FrozenTrial) -> str:
    state, reason = trial_records.state_of(trial), trial_records.reason_of(trial)
    told = f"**{state}**" + (f": {plain(reason)}" if reason else "")
    if trial.value is not None:
        return f"{told}, validation Dice **{trial.value:.4f}**"
    if trial.last_step is not None:
        last = trial.intermediate_values[trial.last_step]
        if trial.last_step not in trial_records.dice_by_epoch(trial):
            return f"{told}, mean validation Dice {last:.4f} of the folds it was trained on"
        return f"{told}, validation Dice {last:.4f} in epoch {trial.last_step}, its last"
    return told


def _configuration(config: Mapping[str, Any]) -> list[Row]:
    picks = [(family, shown(config[family])) for family in DEFAULTS if family in config]
    rest = [
        f"{key.replace('_', ' ')} {short(v)}" for key, v in config.items() if key not in DEFAULTS
    ]
    return [*picks, ("settings", ", ".join(rest))]


def _cost(attrs: Mapping[str, Any]) -> Iterable[Row]:
    owner = attrs.get("owner", {})
    for name, key, told in (
        ("parameters", "params", lambda v: f"{v / 1e6:.2f} million"),
        ("multiply-adds of an image", "macs", lambda v: f"{v / 1e9:.2f} billion"),
        ("epochs", "epochs", str),
        ("training", "seconds", lambda v: f"{v:.0f} s"),
        ("memory at most", "peak_memory", lambda v: f"{v / 1e9:.2f} GB"),
        ("batches computed in parts", "parts", str),
    ):
        if attrs.get(key) is not None:
            yield name, told(attrs[key])
    if owner:
        yield "trained on", f"{owner.get('device')} of {owner.get('host')}"
    for key in ("baseline", "retry_of", "retries", "twin"):
        if key in attrs:
            yield key.replace("_", " "), attrs[key]
