"""A plan as a study file with a comment of why above each choice."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from search.planning.plan import Plan

WIDTH = 100


def render_study(plan: Plan, heading: Sequence[str]) -> str:
    """Return the text of a study file; ``load_spec`` of it gives the plan's spec.

    heading: the first comments.
    """
    plain = plan.spec.model_dump(mode="json", exclude_unset=True)
    lines = [line for text in heading for line in _comment(text, "")]
    for key, value in plain.items():
        lines += _comment(plan.reasons.get(key), "")
        if not isinstance(value, Mapping):
            lines += _entry(key, value, "")
            continue
        lines.append(f"{key}:")
        for name, inner in value.items():
            lines += _comment(plan.reasons.get(f"{key}.{name}"), "  ")
            lines += _entry(name, inner, "  ")
    return "\n".join(lines) + "\n"


def _comment(text: str | None, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(text or "", WIDTH, initial_indent=prefix, subsequent_indent=prefix)


def _entry(key: str, value: Any, indent: str) -> list[str]:
    """Return the lines of a key: mappings of mappings as a block, everything else in one line."""
    if isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values()):
        inner = (_entry(name, each, f"{indent}  ") for name, each in value.items())
        return [f"{indent}{key}:", *(line for lines in inner for line in lines)]
    # In a list, because YAML marks the end of a single scalar.
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=sys.maxsize)
    return [f"{indent}{key}: {text.strip()[1:-1]}"]
