"""Every private name of Optuna that the project uses exists in the installed version."""

import ast
import importlib

import optuna
import pytest
from optuna.samplers import TPESampler

from tests.conftest import ROOT

SOURCE = ROOT / "search" / "storage" / "optuna_internals.py"
#: Read from the source, not imported: a missing name would fail the import of the whole file.
[PRIVATE_SYMBOLS] = [
    ast.literal_eval(node.value)
    for node in ast.parse(SOURCE.read_text()).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRIVATE_SYMBOLS"
]
SYMBOLS = [
    (module, symbol) for module, symbols in PRIVATE_SYMBOLS.items() for symbol in symbols.split()
]


def instance(cls: type) -> object:
    if cls is TPESampler:
        return TPESampler(multivariate=True, group=True)
    study = optuna.create_study()
    trial = study.ask()
    examples = {optuna.Study: study, optuna.Trial: trial, optuna.trial.FrozenTrial: study.trials[0]}
    return examples[cls] if cls in examples else cls()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("module", "symbol"), SYMBOLS, ids=[".".join(s) for s in SYMBOLS])
def test_the_private_symbol_exists(module, symbol):
    message = (
        f"{module}.{symbol} is not in optuna {optuna.__version__}; "
        "adapt search/storage/optuna_internals.py"
    )
    try:
        value = importlib.import_module(module)
    except ModuleNotFoundError:
        pytest.fail(message)
    for name in symbol.split("."):
        if not hasattr(value, name.removesuffix("()")):
            pytest.fail(message)
        value = getattr(value, name.removesuffix("()"))
        if name.endswith("()"):
            value = instance(value)


def test_a_symbol_that_moved_is_named_with_the_version():
    with pytest.raises(
        pytest.fail.Exception, match=r"optuna\.study\.Study\._moved is not in optun"
    ):
        test_the_private_symbol_exists("optuna.study", "Study._moved")
