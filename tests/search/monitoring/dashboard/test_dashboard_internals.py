"""optuna-dashboard still has the private names that this project uses."""

import importlib
from importlib.metadata import version

import optuna
import optuna_dashboard
import pytest

from search.monitoring.dashboard.dashboard_internals import DETAIL_ROUTE, PRIVATE_SYMBOLS

SYMBOLS = [(module, name) for module, names in PRIVATE_SYMBOLS.items() for name in names]


def find_symbol(module_name, name):
    """Return an attribute by dotted name; ``()`` after a class creates an instance."""
    found = importlib.import_module(module_name)
    for part in name.split("."):
        found = getattr(found, part.removesuffix("()"))
        found = found() if part.endswith("()") else found
    return found


@pytest.mark.parametrize(("module_name", "name"), SYMBOLS)
def test_private_symbol_exists(module_name, name):
    try:
        find_symbol(module_name, name)
    except (ImportError, AttributeError):
        pytest.fail(
            f"optuna-dashboard {version('optuna-dashboard')} has no {module_name}.{name}; "
            "adapt search/monitoring/dashboard/dashboard_internals.py"
        )


def test_detail_route_exists():
    app = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage())
    assert (DETAIL_ROUTE, "GET") in {(route.rule, route.method) for route in app.routes}, (
        f"optuna-dashboard {version('optuna-dashboard')} has no route {DETAIL_ROUTE}"
    )


def test_a_missing_symbol_is_detected():
    with pytest.raises(AttributeError):
        find_symbol("optuna_dashboard._note", "no_such_name")
