"""Format configurations and post-processing steps as one line of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS, TrialConfig
from lesionseg.registry import FAMILIES
from lesionseg.space import format_value


def format_config(config: TrialConfig | Mapping[str, Any]) -> str:
    """Format a configuration: ``unet(width=16, depth=4) · dice · flips · ...``."""
    plain = config.to_dict() if isinstance(config, TrialConfig) else config
    parts = []
    for family, default in DEFAULT_COMPONENTS.items():
        name, params = next(iter(plain[family].items()))
        if family == "mix" and name == default:
            continue  # "none" is there already, for the augmentation
        # Settled parameters at their default are left out.
        entry = FAMILIES[family].get(name)
        shown = {
            key: value
            for key, value in params.items()
            if not entry or key not in entry.fixed_by_default or value != entry.space[key].default
        }
        parts.append(_format_call(name, shown))
    return " · ".join(parts)


def format_step(step: Mapping[str, Any]) -> str:
    """Format a post-processing step: ``opening(radius=0.5)``."""
    name, params = next(iter(step.items()))
    return _format_call(name, params)


def _format_call(name: str, params: Mapping[str, Any]) -> str:
    inner = ", ".join(f"{k}={_format_value(v)}" for k, v in params.items())
    return f"{name}({inner})" if inner else name


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return format_value(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
