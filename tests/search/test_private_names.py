"""Private names of Optuna and optuna-dashboard are used in one module each.

Only syntax trees are read. An attribute with a leading underscore is allowed on ``self`` and
``cls``; a subclass of one of Optuna's classes may use those only which it defines itself.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("optuna", "optuna_dashboard")
#: Modules that may use the private names of these libraries.
INTERNALS = {
    "search/storage/optuna_internals.py": "optuna",
    "search/monitoring/dashboard/dashboard_internals.py": "optuna_dashboard",
}
#: Named tuples; ``os._exit``; ``ray._private``, for which Ray has no public replacement.
ALLOWED = {"_asdict", "_fields", "_make", "_replace", "_exit", "_private"}
MODULES = [
    *sorted(
        path.relative_to(ROOT).as_posix()
        for folder in ("search", "bench")
        for path in (ROOT / folder).rglob("*.py")
    ),
    "cli.py",
]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private modules and names that are imported from LIBRARIES."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            library, *rest = name.split(".")
            if library in LIBRARIES and any(map(is_private, rest)):
                yield node.lineno, name


def private_attributes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private attributes of anything but ``self`` and ``cls``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ALLOWED:
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in {"self", "cls"}):
                yield node.lineno, ast.unparse(node)


def inherited_attributes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Private attributes of ``self`` that a subclass of one of LIBRARIES' classes inherits."""
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES
        for alias in node.names
    }
    for cls in ast.walk(tree):
        if not isinstance(cls, ast.ClassDef):
            continue
        if not any(ast.unparse(b).split(".")[0] in {*imported, *LIBRARIES} for b in cls.bases):
            continue
        attributes = [
            node
            for node in ast.walk(cls)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"self", "cls"}
        ]
        own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
        own |= {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
        for node in attributes:
            if is_private(node.attr) and node.attr not in own:
                yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_uses_no_private_names(module):
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    found = list(private_imports(tree))
    if module in INTERNALS:
        found = [(line, name) for line, name in found if name.split(".")[0] != INTERNALS[module]]
    else:
        found += [*private_attributes(tree), *inherited_attributes(tree)]
    assert found == [], f"{module}: private names belong in {' or '.join(INTERNALS)}"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from optuna.storages._rdb import models", ["optuna.storages._rdb.models"]),
        ("from optuna_dashboard import _note", ["optuna_dashboard._note"]),
        ("import optuna._typing", ["optuna._typing"]),
        ("study._storage.x", ["study._storage"]),
        ("row._replace(a=1), self._x, cls._y, x.__dict__", []),
        ("from search.a import _b", []),
        (
            "from optuna.pruners import MedianPruner\n"
            "class A(MedianPruner):\n"
            "    def f(self):\n"
            "        self._own = self._inherited\n",
            ["self._inherited"],
        ),
    ],
)
def test_private_names_are_found(source, names):
    tree = ast.parse(source)
    found = [*private_imports(tree), *private_attributes(tree), *inherited_attributes(tree)]
    assert [name for _, name in found] == names
