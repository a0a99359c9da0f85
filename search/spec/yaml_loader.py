"""Read YAML as people write it: no duplicate keys, ``1e-3`` is a number, ``off`` is a string.

PyYAML follows YAML 1.1; the resolvers below follow YAML 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lesionseg.errors import InputError, one_line

#: Largest number of bits of an integer.
MAX_INT_BITS = 1024


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values; raises InputError for anything else."""
    plain = load_file(path)
    if not isinstance(plain, dict):
        raise InputError(f"{path}: a file must be keys and values, got {type(plain).__name__}")
    return plain


def load_file(path: Path) -> Any:
    """Read a YAML file; raises InputError with the reason, or with line and column."""
    try:
        return load_value(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise InputError(f"{path}: not YAML: {position}{problem}") from None


def load_value(text: str) -> Any:
    """Parse YAML text; raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML's constructors raise these for scalars such as 2026-02-30 or !!bool maybe
        raise yaml.YAMLError(f"a value that cannot be read: {one_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """A SafeLoader that rejects duplicate keys, of which PyYAML silently takes the last."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys: list[Any] = []  # not a set: a key may not be hashable, which PyYAML reports
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue  # keys merged in with ``<<`` may be overridden
        key = loader.construct_object(key_node, deep=True)
        if key in keys:
            raise yaml.MarkedYAMLError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        keys.append(key)
    return loader.construct_mapping(node, deep=True)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    if value.bit_length() > MAX_INT_BITS:  # Python refuses to print very large integers
        raise yaml.MarkedYAMLError(None, None, "a number that is too large", node.start_mark)
    return int(value)


_MERGE, _BOOL = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:bool"
_EXPONENT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
