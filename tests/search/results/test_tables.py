"""The final report on the console."""

import io

import pytest
from rich.console import Console

from search.results.tables import print_final_report
from tests.search.results.report.fake_studies import (
    add_trials,
    ensemble_final,
    make_final,
    make_study,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = make_study(tmp_path_factory.mktemp("console") / "run")
    add_trials(study)
    return study


def print_report(study, folder, **changes):
    console = Console(file=io.StringIO(), width=240, soft_wrap=True)
    print_final_report(console, make_final(folder, study, **changes))
    return console.file.getvalue().splitlines()


def test_finalists_and_ensemble_have_a_line_each(study, tmp_path):
    changes = ensemble_final(study)
    lines = print_report(study, tmp_path, **changes)
    chosen = changes["finalists"][1]
    (finalists,) = [line for line in lines if line.startswith("finalists")]
    assert finalists == (
        f"finalists: trial {chosen['trial']} of 3 has the best mean validation Dice, 0.9007 over "
        f"2 seeds, deviation 0.0007; {chosen['search']:.4f} in the search"
    )
    (ensemble,) = [line for line in lines if line.startswith("ensemble")]
    assert ensemble == (
        "ensemble of 3 networks instead of the best one; validation Dice +0.0059, standard error "
        "0.0013; 57 images/s instead of 172, 52 MB instead of 17"
    )


def test_one_network_has_no_such_lines(study, tmp_path):
    lines = print_report(study, tmp_path)
    assert not [line for line in lines if line.startswith(("finalists", "ensemble"))]
    assert lines[-1] == "test evaluations of this study: 1"
