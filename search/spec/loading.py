"""Study files: find, read, override, validate and compare them."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lesionseg.errors import InputError, suggest_name
from lesionseg.registry import FAMILIES
from search.spec import yaml_loader
from search.spec.search_space import parse_space
from search.spec.study_spec import DataSpec, StudySpec


def load_spec(study: str, overrides: Sequence[str] = ()) -> StudySpec:
    """Load a study by the path of its file or by the name of a shipped study.

    overrides: texts such as ``budget.epochs=3``; values are YAML.

    Raises:
        InputError: With all errors of the file in one line.
    """
    path = _find_study_file(study)
    plain = apply_overrides(yaml_loader.load_mapping(path), overrides)
    plain.setdefault("name", path.stem)
    return parse_spec(plain, str(path))


def parse_spec(plain: Mapping[str, Any], where: str) -> StudySpec:
    """Validate plain data as a StudySpec; where: the origin of the data, for messages.

    Raises:
        InputError: With all errors in one line.
    """
    try:
        spec = StudySpec.model_validate(plain)
    except ValidationError as error:
        # The search space is checked as far as it does not depend on the invalid sections.
        errors = [_format_error(e) for e in error.errors()] + _find_space_errors(plain)
        raise InputError(f"{where}: {join_errors(errors)}") from None
    errors = spec.find_errors()
    if errors:
        raise InputError(f"{where}: {join_errors(errors)}")
    return spec


def join_errors(errors: Sequence[str]) -> str:
    """Join errors to one line, numbered if there are several."""
    if len(errors) == 1:
        return errors[0]
    return "; ".join(f"({i}) {error}" for i, error in enumerate(errors, 1))


def shipped_studies() -> dict[str, Path]:
    """Return the paths of the study files that belong to lesionsearch, by name."""
    root = Path(str(importlib.resources.files("studies")))
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def apply_overrides(plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set keys such as ``budget.epochs=3`` in plain data and return it."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set: must be KEY=VALUE such as budget.epochs=3, got {text!r}")
        *parents, last = key.strip().split(".")
        section = plain
        for depth, parent in enumerate(parents, 1):
            if not isinstance(section.get(parent), dict):
                section[parent] = _expand_short_form(parents[:depth], section.get(parent))
            section = section[parent]
        try:
            section[last] = yaml_loader.load_value(value)
        except yaml.YAMLError:
            raise InputError(f"--set: {key}: the value is not YAML: {value!r}") from None
    return plain


def find_differing_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Return the dotted keys whose values differ between two specs as plain data."""
    keys: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            keys += find_differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key}")
    return keys


def _find_study_file(study: str) -> Path:
    path = Path(study)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    shipped = shipped_studies()
    if study not in shipped:
        raise InputError(
            f"study: unknown study {study!r} ({suggest_name(study, shipped)}); "
            f"give one of them or the path of a .yaml file"
        )
    return shipped[study]


def _expand_short_form(path: Sequence[str], value: object) -> dict[str, Any]:
    """Return the mapping that a name or a list of names is short for."""
    if path == ["data", "split"] and isinstance(value, str):
        return {"mode": value}
    if path[0] == "search" and value == "all":
        return {name: {} for name in FAMILIES.get(path[-1], ())}
    names = [value] if path[0] == "search" and isinstance(value, str) else value
    return {str(name): {} for name in names} if isinstance(names, list) else {}


def _format_error(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key ({suggest_name(path[-1], _section_keys(path[:-1]))})"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], Mapping | BaseModel):
        return f"{where}: {message}"
    return f"{where}: {message}, got {error['input']!r}"


def _section_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = StudySpec
    for part in path:
        section = model.model_fields[part].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        model = section
    return list(model.model_fields)


def _find_space_errors(plain: Mapping[str, Any]) -> list[str]:
    search, fixed = plain.get("search", {}), plain.get("fixed", {})
    if not isinstance(search, dict) or not isinstance(fixed, dict):
        return []
    try:
        size = DataSpec.model_validate(plain.get("data", {})).image_size
    except ValidationError:
        size = 4096  # valid for every model
    settings = {"image_size": size, "epochs": 1, "patience": 0, "seed": 0}
    return parse_space(search, fixed, settings)[1]
