"""Configurations and post-processing steps as one line of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import DEFAULTS, TrialConfig
from lesionseg.registry import FAMILIES
from lesionseg.space import spelt


def format_config(config: TrialConfig | Mapping[str, Any]) -> str:
    """A configuration in one line: ``unet(width=16, depth=4) · dice · flips · ...``."""
    plain = config.to_dict() if isinstance(config, TrialConfig) else config
    parts = []
    for family, default in DEFAULTS.items():
        name, params = next(iter(plain[family].items()))
        if family == "mix" and name == default:
            continue  # a second "none" in the line would say nothing
        # What stands at its default where no study said otherwise would hide what was chosen.
        settled = FAMILIES[family][name].settled if name in FAMILIES[family] else ()
        told = {
            k: v
            for k, v in params.items()
            if k not in settled or v != FAMILIES[family][name].space[k].default
        }
        parts.append(_called(name, told))
    return " · ".join(parts)


def format_step(step: Mapping[str, Any]) -> str:
    """One step after the network: ``opening(radius=0.5)``."""
    name, params = next(iter(step.items()))
    return _called(name, params)


def _called(name: str, params: Mapping[str, Any]) -> str:
    inner = ", ".join(f"{k}={_short(v)}" for k, v in params.items())
    return f"{name}({inner})" if inner else name


def _short(value: object) -> str:
    if isinstance(value, bool):
        return spelt(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
