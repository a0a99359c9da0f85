"""Arrows run one way: cli -> search -> lesionseg; and what is heavy waits until it is needed."""

import ast
import json
import pkgutil
import subprocess
import sys

import pytest

import lesionseg
import search
from tests.conftest import ROOT

SEGMENTATION = sorted((ROOT / "lesionseg").rglob("*.py"))
SEARCH = sorted((ROOT / "search").rglob("*.py"))


def imported(path):
    """The top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # No relative imports: a leading dot would hide the package from this test.
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found.add((node.module or "").partition(".")[0])
    return found


def modules_after(code):
    """What stands in sys.modules after the code has run in a fresh interpreter."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_files_are_found():
    names = {p.relative_to(ROOT).as_posix() for p in SEGMENTATION + SEARCH}
    assert {
        "lesionseg/training/train.py",
        "lesionseg/models/unet.py",
        "search/workers/worker.py",
    } <= names


@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_segmentation_imports_neither_the_search_nor_its_tools(path):
    assert not imported(path) & {"search", "cli", "studies", "optuna", "typer", "yaml", "pydantic"}


@pytest.mark.parametrize("path", SEARCH, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_search_imports_no_command_line(path):
    assert not imported(path) & {"cli", "typer"}


def test_importing_all_of_segmentation_brings_in_no_search_and_none_of_its_tools():
    names = [m.name for m in pkgutil.walk_packages(lesionseg.__path__, "lesionseg.")]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert set(names) <= loaded
    assert not loaded & {"optuna", "sqlalchemy", "typer", "click", "search", "cli"}


def test_help_is_rendered_without_torch_or_any_of_ours():
    loaded = modules_after(
        "import cli\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(cli.app, ['--help'])\n"
        "assert result.exit_code == 0 and 'Hyperparameter search' in result.output, result.output"
    )
    assert "cli" in loaded
    heavy = {"torch", "numpy", "optuna", "sqlalchemy", "albumentations", "cv2", "matplotlib"}
    assert not loaded & (heavy | {"lesionseg", "search"})


def test_no_commands_help_needs_torch():
    loaded = modules_after(
        "import cli\n"
        "from typer.testing import CliRunner\n"
        "commands = [c.name or c.callback.__name__ for c in cli.app.registered_commands]\n"
        "assert {'run', 'demo', 'status'} <= set(commands), commands\n"
        "for command in commands:\n"
        "    result = CliRunner().invoke(cli.app, [command, '--help'])\n"
        "    assert result.exit_code == 0, result.output"
    )
    assert "torch" not in loaded


@pytest.mark.parametrize(
    "name",
    ["search.trial_process.process", "search.trial_process.protocol", "search.trial_process.slot"],
)
def test_the_side_of_a_child_that_workers_import_brings_in_no_torch(name):
    """Workers and the command line talk to trainings without paying for torch themselves."""
    assert name in {m.name for m in pkgutil.iter_modules(search.__path__, "search.")}
    loaded = modules_after(f"import {name}")
    assert name in loaded
    assert not loaded & {"torch", "optuna", "sqlalchemy"}
