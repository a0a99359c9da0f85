"""docs/options.md, made from the tables."""

from __future__ import annotations

from collections.abc import Mapping

from lesionseg.config import ABOUT_SETTINGS, DEFAULTS, SETTINGS
from lesionseg.inference.postprocess import POSTPROCESS
from lesionseg.inference.tta import TTA
from lesionseg.space import Domain, RegistryEntry, spelt

_HEAD = """# Options

Everything that can be searched, with its ranges. Made by `lesionsearch options --markdown` from
the tables that the search itself reads; a test holds this page to them.

A study names options and may narrow their ranges; it can never widen one. Parameters marked *
stay at their default unless a study names them, or says `all` in the place of an option's
parameters: they cost much, need what not everybody has, or change what is allowed elsewhere.
"""


def options_markdown(families: Mapping[str, Mapping[str, RegistryEntry]]) -> str:
    """The page: a table for each family, and, where all are asked for, what else there is."""
    parts = [_HEAD]
    for family, table in families.items():
        default = DEFAULTS.get(family)
        told = f" A study that names none has `{default}`." if default else ""
        parts += [f"## {family}\n\n{len(table)} options.{told}\n", _table(table, family)]
    if set(families) == set(DEFAULTS):
        parts += ["## settings\n", _settings(), "## after training\n", _AFTER]
        parts.append(_table(POSTPROCESS, "step"))
    return "\n".join(parts)


_AFTER = f"""What is done to a trained network's output is chosen by `lesionsearch final` on the
validation images and kept in the checkpoint; `final.tta` and `final.postprocess` switch it off.
Test-time augmentation: {", ".join(f"`{name}`" for name in TTA)}. The steps:
"""


def _table(table: Mapping[str, RegistryEntry], family: str) -> str:
    sized = family == "model"
    heads = [family, "what it is", "parameters (default)", *(["image sizes"] if sized else [])]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, option in table.items():
        params = "<br>".join(
            f"`{key}`{'*' if key in option.settled else ''} {_ranged(domain)}"
            for key, domain in option.space.items()
        )
        cells = [f"`{name}`", option.about, params]
        lines.append(_line([*cells, *([_sizes(option)] if sized else [])]))
    return "\n".join([*lines, ""])


def _settings() -> str:
    lines = [_line(["setting", "what it is", "range (default)"]), _line(["---"] * 3)]
    for name, domain in SETTINGS.items():
        lines.append(_line([f"`{name}`", ABOUT_SETTINGS[name], _ranged(domain)]))
    return "\n".join([*lines, ""])


def _sizes(option: RegistryEntry) -> str:
    """Multiples at the defaults; a parameter such as depth moves them."""
    stride = option.stride(**{name: domain.default for name, domain in option.space.items()})
    return f"multiples of {stride} from {max(stride, option.smallest)}"


def _ranged(domain: Domain) -> str:
    return f"{domain} ({spelt(domain.default)})"


def _line(cells: list[str]) -> str:
    # A bar within a cell would end it.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
