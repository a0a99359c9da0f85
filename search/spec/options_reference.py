"""Generate docs/options.md from the tables."""

from __future__ import annotations

from collections.abc import Mapping

from lesionseg.config import DEFAULT_COMPONENTS, SETTING_DESCRIPTIONS, SETTINGS
from lesionseg.inference.postprocess import POSTPROCESS
from lesionseg.inference.tta import TTA
from lesionseg.space import Domain, RegistryEntry, format_value

_HEAD = """# Options

Everything that can be searched, with its ranges. `lesionsearch options --markdown` generates this
page from the tables that the search reads; a test compares them.

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
    heads = [family, "description", "parameters (default)", *(["image sizes"] if sized else [])]
    lines = [_format_row(heads), _format_row(["---"] * len(heads))]
    for name, entry in table.items():
        params = "<br>".join(
            f"`{key}`{'*' if key in entry.fixed_by_default else ''} {_format_domain(domain)}"
            for key, domain in entry.space.items()
        )
        cells = [f"`{name}`", entry.description, params]
        lines.append(_format_row([*cells, *([_format_sizes(entry)] if sized else [])]))
    return "\n".join([*lines, ""])


def _settings() -> str:
    lines = [_format_row(["setting", "description", "range (default)"]), _format_row(["---"] * 3)]
    for name, domain in SETTINGS.items():
        lines.append(_format_row([f"`{name}`", SETTING_DESCRIPTIONS[name], _format_domain(domain)]))
    return "\n".join([*lines, ""])


def _format_sizes(entry: RegistryEntry) -> str:
    """Return the valid image sizes at the default parameters; the depth, for one, changes them."""
    stride = entry.stride(**{name: domain.default for name, domain in entry.space.items()})
    return f"multiples of {stride} from {max(stride, entry.min_image_size)}"


def _format_domain(domain: Domain) -> str:
    return f"{domain} ({format_value(domain.default)})"


def _format_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
