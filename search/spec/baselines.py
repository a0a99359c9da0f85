"""Published systems as fixed configurations: studies/baselines/*.yaml.

The file of a baseline names its source and the keys of a TrialConfig that the source specifies. The
other keys keep the defaults of the tables. Image size, epochs, patience and seed belong to the run,
so that all baselines are trained alike.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError, suggest_name
from lesionseg.registry import FAMILIES
from lesionseg.space import lookup
from search.spec import yaml_loader

#: Stands for all baselines in a list of names.
ALL = "baselines"


@dataclass(frozen=True)
class Baseline:
    """A published system.

    source: letter of its source in docs/baselines.md.
    about: description in one line.
    config: the keys of a TrialConfig that the source specifies.
    epochs: number of epochs in the source; None if unknown.
    share: fraction of the run's epochs that it is trained for; less than 1 only for a system that
        differs from another in its number of epochs alone.
    """

    name: str
    source: str
    about: str
    config: Mapping[str, Any]
    epochs: int | None = None
    share: float = 1.0


@lru_cache(maxsize=1)
def load_baselines() -> dict[str, Baseline]:
    """Load all baselines by name, ordered by source and then by name."""
    root = Path(str(importlib.resources.files("studies"))) / "baselines"
    paths = sorted(root.glob("*.yaml"))
    baselines = [Baseline(path.stem, **yaml_loader.load_mapping(path)) for path in paths]
    return {b.name: b for b in sorted(baselines, key=lambda b: b.source)}


def get_baseline(name: str) -> Baseline:
    """Return the baseline of a name; raises InputError with the nearest name if there is none."""
    baselines = load_baselines()
    if name not in baselines:
        raise InputError(f"unknown baseline {name!r} ({suggest_name(name, baselines)})")
    return baselines[name]


def expand_names(names: Iterable[str]) -> list[str]:
    """Replace ``baselines`` by all names, check the others and drop repeated names."""
    expanded: list[str] = []
    for name in names:
        expanded += load_baselines() if name == ALL else [get_baseline(name).name]
    return list(dict.fromkeys(expanded))


def build_config(
    name: str, image_size: int, epochs: int, seed: int = 0, patience: int = 0
) -> TrialConfig:
    """Build the complete configuration of a baseline for a run."""
    baseline = get_baseline(name)
    run_settings = {
        "image_size": image_size,
        "epochs": max(1, round(baseline.share * epochs)),
        "patience": patience,
        "seed": seed,
    }
    return resolve_config({**baseline.config, **run_settings})


def resolve_config(plain: Mapping[str, Any]) -> TrialConfig:
    """Build a configuration, adding the defaults of all parameters that are left out."""
    resolved = TrialConfig.from_dict(plain).to_dict()
    for family, table in FAMILIES.items():
        ((name, params),) = resolved[family].items()
        try:
            resolved[family] = {name: lookup(family, table, name).resolve(params)}
        except InputError as error:
            raise InputError(f"{family}.{name}: {error}") from None
    return TrialConfig.from_dict(resolved)
