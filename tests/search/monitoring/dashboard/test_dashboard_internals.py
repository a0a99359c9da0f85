"""Every private name of optuna-dashboard that is used exists in the installed version."""

import ast
import importlib
import importlib.metadata

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "search" / "monitoring" / "dashboard" / "dashboard_internals.py"
#: Read from the source, not imported: a missing name would fail the import of the whole file.
SYMBOLS = [
    (node.module, alias.name)
    for node in ast.walk(ast.parse(SOURCE.read_text()))
    if isinstance(node, ast.ImportFrom) and node.module.startswith("optuna_dashboard")
    for alias in node.names
]


def check_symbol(module: str, name: str) -> None:
    version = importlib.metadata.version("optuna-dashboard")
    message = (
        f"{module}.{name} does not exist in optuna-dashboard {version}: adapt {SOURCE.name} to the "
        "new version, or pin an earlier one"
    )
    try:
        assert hasattr(importlib.import_module(module), name), message
    except ModuleNotFoundError:
        raise AssertionError(message) from None


@pytest.mark.parametrize(("module", "name"), SYMBOLS)
def test_private_name_exists(module, name):
    check_symbol(module, name)


def test_names_are_found():
    assert len(SYMBOLS) >= 4


@pytest.mark.parametrize("module", ["optuna_dashboard._note", "optuna_dashboard._moved"])
def test_a_moved_name_is_reported_with_name_and_version(module):
    with pytest.raises(AssertionError, match=rf"{module}\.gone does not exist in .*dashboard \d"):
        check_symbol(module, "gone")
