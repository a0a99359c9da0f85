"""Format configurations and post-processing steps as one line of text, and docs/options.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lesionseg.config import DEFAULT_COMPONENTS, SETTING_DESCRIPTIONS, SETTINGS, TrialConfig
from lesionseg.errors import format_some
from lesionseg.inference.postprocess import POSTPROCESS
from lesionseg.inference.tta import TTA
from lesionseg.registry import FAMILIES
from lesionseg.space import Domain, RegistryEntry, format_value


def format_config(config: TrialConfig | Mapping[str, Any]) -> str:
    """Format a configuration: ``unet(width=16, depth=4) · dice · flips · ...``."""
    plain = config.to_dict() if isinstance(config, TrialConfig) else config
    return " · ".join(
        format_component(family, plain[family])
        for family in DEFAULT_COMPONENTS
        # "none" is there already, for the augmentation
        if family != "mix" or "none" not in plain[family]
    )


def format_component(family: str, component: Mapping[str, Any]) -> str:
    """Format an option; parameters that are fixed by default and at their default are left out."""
    name, params = next(iter(component.items()))
    entry = FAMILIES[family].get(name)
    shown = {
        key: value
        for key, value in params.items()
        if not entry or key not in entry.fixed_by_default or value != entry.space[key].default
    }
    return format_step({name: shown})


def format_step(step: Mapping[str, Any]) -> str:
    """Format a post-processing step: ``opening(radius=0.5)``."""
    name, params = next(iter(step.items()))
    inner = ", ".join(f"{k}={_format_value(v)}" for k, v in params.items())
    return f"{name}({inner})" if inner else name


_WEIGHTS = {"imagenet": "ImageNet (hub)", "bundled": "ImageNet (bundled)", "none": "none"}


def format_weights(source: str) -> str:
    """Format where an encoder's weights are from; a source without a name of its own is a file."""
    return _WEIGHTS.get(source, f"file {source}")


def format_encoder_weights(weights: Mapping[str, str]) -> str:
    """Format a study's encoder weights by source: ``ImageNet (bundled): a, b; none: c``."""
    encoders: dict[str, list[str]] = {}
    for encoder, source in sorted(weights.items()):
        encoders.setdefault(source, []).append(encoder)
    return "; ".join(
        f"{format_weights(key)}: {format_some(each)}" for key, each in encoders.items()
    )


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return format_value(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_HEAD = """# Options

Everything that can be searched, with its ranges. `lesionsearch options` prints this page from the
tables that the search reads.

A study names options and may narrow their ranges, but not widen them. Parameters marked * keep
their default unless a study names them or sets the option to `all`: they are expensive, need
additional files or change which image sizes are valid.
"""


def options_markdown(families: Mapping[str, Mapping[str, RegistryEntry]]) -> str:
    """Return the page; with all families it has the settings and post-processing steps, too."""
    parts = [_HEAD]
    for family, table in families.items():
        default = DEFAULT_COMPONENTS.get(family)
        note = f" The default is `{default}`." if default else ""
        parts += [f"## {family}\n\n{len(table)} options.{note}\n", _table(table, family)]
    if set(families) == set(DEFAULT_COMPONENTS):
        parts += ["## settings\n", _settings(), "## after training\n", _AFTER]
        parts.append(_table(POSTPROCESS, "step"))
    return "\n".join(parts)


_AFTER = f"""`lesionsearch final` selects test-time augmentation and post-processing on the
validation images and stores the selection in the checkpoint; `final.tta` and `final.postprocess`
disable it. Test-time augmentation: {", ".join(f"`{name}`" for name in TTA)}. Post-processing steps:
"""


def _table(table: Mapping[str, RegistryEntry], family: str) -> str:
    sized = family == "model"
    rows = [[family, "description", "parameters (default)", *(["image sizes"] if sized else [])]]
    for name, entry in table.items():
        params = "<br>".join(
            f"`{key}`{'*' if key in entry.fixed_by_default else ''} {_format_domain(domain)}"
            for key, domain in entry.space.items()
        )
        sizes = [_format_sizes(entry)] if sized else []
        rows.append([f"`{name}`", entry.description, params, *sizes])
    return _format_table(rows)


def _settings() -> str:
    rows = [
        [f"`{name}`", SETTING_DESCRIPTIONS[name], _format_domain(domain)]
        for name, domain in SETTINGS.items()
    ]
    return _format_table([["setting", "description", "range (default)"], *rows])


def _format_sizes(entry: RegistryEntry) -> str:
    """Return the valid image sizes at the default parameters; the depth, for one, changes them."""
    stride = entry.stride(**{name: domain.default for name, domain in entry.space.items()})
    return f"multiples of {stride} from {max(stride, entry.min_image_size)}"


def _format_domain(domain: Domain) -> str:
    return f"{domain} ({format_value(domain.default)})"


def _format_table(rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [" | ".join(row) for row in [escaped[0], ["---"] * len(rows[0]), *escaped[1:]]]
    return "\n".join([*(f"| {line} |" for line in lines), ""])
