"""What an import loads at run time, which the import contracts of pyproject.toml cannot see."""

import json
import pkgutil
import subprocess
import sys

import pytest

import lesionseg
from tests.conftest import ROOT


def modules_after(code):
    """Return the names in sys.modules after the code has run in a new interpreter."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_lesionseg_loads_neither_optuna_nor_typer_nor_yaml_by_itself():
    """albumentations imports yaml; so do not count what third-party packages load."""
    names = [m.name for m in pkgutil.walk_packages(lesionseg.__path__, "lesionseg.")]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert set(names) <= loaded
    assert not loaded & {"optuna", "sqlalchemy", "typer", "click", "search", "cli"}


def test_no_help_page_loads_torch_or_optuna():
    loaded = modules_after(
        "import cli\n"
        "from typer.testing import CliRunner\n"
        "commands = [c.name or c.callback.__name__ for c in cli.app.registered_commands]\n"
        "assert {'run', 'demo', 'status'} <= set(commands), commands\n"
        "for words in [[], *[[command] for command in commands], ['data', 'check']]:\n"
        "    result = CliRunner().invoke(cli.app, [*words, '--help'])\n"
        "    assert result.exit_code == 0, result.output"
    )
    heavy = {"torch", "numpy", "optuna", "sqlalchemy", "albumentations", "cv2", "matplotlib"}
    assert "cli" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize("name", ["process", "protocol", "slot"])
def test_the_parents_side_of_the_training_process_loads_no_torch(name):
    loaded = modules_after(f"import search.trial_process.{name}")
    assert not loaded & {"torch", "optuna", "sqlalchemy"}


def test_a_slurm_job_starts_without_torch():
    """Its signal handlers are installed before torch is imported, which takes seconds."""
    assert "torch" not in modules_after("import search.workers.launchers.slurm_job")
