"""The published systems as fixed configurations: studies/baselines/*.yaml.

A baseline's file says where it comes from, and what of a TrialConfig it settles; what its source
leaves open and the file does not name stays at the tables' defaults. Image size, epochs and seed
are never a baseline's own: all are trained alike.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lesionseg.config import DEFAULTS, SETTINGS, TrialConfig
from lesionseg.errors import InputError, nearest
from lesionseg.registry import FAMILIES
from lesionseg.space import Pick, lookup
from search.spec import yaml_loader

#: What stands for every baseline where baselines are named.
ALL = "baselines"

#: Settings that belong to the run and not to a baseline.
OF_THE_RUN = ("image_size", "epochs", "patience", "seed")


@dataclass(frozen=True)
class Baseline:
    """A published system.

    source: which of the sources of docs/baselines.md it is of, by its letter.
    about: one line for people.
    epochs: as its source trained it; None where that is not told.
    share: its part of the epochs that a run gives; less than 1 only for a system which differs
        from another in its number of epochs alone.
    config: the keys of a TrialConfig that it settles.
    """

    name: str
    source: str
    about: str
    config: Mapping[str, Any]
    epochs: int | None = None
    share: float = 1.0


def names() -> list[str]:
    """The baselines' names, by source and then as their files sort."""
    return list(_all())


def baseline(name: str) -> Baseline:
    """The baseline of that name; InputError with the nearest match if there is none."""
    known = _all()
    if name not in known:
        raise InputError(f"unknown baseline {name!r} ({nearest(name, known)})")
    return known[name]


def selected(wanted: Iterable[str]) -> list[str]:
    """The baselines that a list names, ``baselines`` standing for all, each once and in order."""
    format_step: list[str] = []
    for name in wanted:
        format_step += names() if name == ALL else [baseline(name).name]
    return list(dict.fromkeys(format_step))


def config(
    name: str, image_size: int, epochs: int, seed: int = 0, patience: int = 0
) -> TrialConfig:
    """A baseline as a whole configuration, every parameter spelt out, for a run's budget."""
    chosen = baseline(name)
    plain = TrialConfig.from_dict(
        dict(chosen.config)
        | {
            "image_size": image_size,
            "epochs": max(1, round(chosen.share * epochs)),
            "patience": patience,
            "seed": seed,
        }
    ).to_dict()
    for family in DEFAULTS:
        pick = pick_of(plain, family)
        row = lookup(family, FAMILIES[family], pick.name)
        plain[family] = {pick.name: row.resolve(pick.params)}
    return TrialConfig.from_dict(plain)


@lru_cache(maxsize=1)
def _all() -> dict[str, Baseline]:
    root = Path(str(importlib.resources.files("studies"))) / "seeds"
    found = [_read(path) for path in sorted(root.glob("*.yaml"))]
    return {p.name: p for p in sorted(found, key=lambda p: p.source)}


def _read(path: Path) -> Baseline:
    plain = yaml_loader.parse(path, path.read_text(encoding="utf-8"))
    known = ("source", "about", "epochs", "share", "config")
    for key in plain:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r} ({nearest(key, known)})")
    for key in plain["config"]:
        if key in OF_THE_RUN or key not in {*DEFAULTS, *SETTINGS}:
            raise InputError(f"{path}: config.{key}: is none of a baseline's keys")
    return Baseline(path.stem, **plain)


def pick_of(plain: Mapping[str, Any], family: str) -> Pick:
    """One pick of a configuration as plain data."""
    ((name, params),) = plain[family].items()
    return Pick(name, params)
