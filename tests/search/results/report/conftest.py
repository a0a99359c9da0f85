"""A finished study and its report."""

import shutil

import pytest

from search.results.report import write_report
from search.storage.study_dir import read_metrics
from search.study.opening import load_study
from tests.search.results.report.fake_studies import add_trials, make_final, make_study
from tests.search.results.report.html_reader import Page


@pytest.fixture(autouse=True)
def _no_storage(monkeypatch):
    monkeypatch.delenv("LESIONSEARCH_STORAGE", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a tested study with its report; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    study = make_study(folder)
    add_trials(study)
    make_final(folder, study)
    write_report(folder)
    return folder


@pytest.fixture()
def done(finished, tmp_path):
    """A copy of the finished study: folder, study and metrics."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder, load_study(folder), read_metrics(folder)


@pytest.fixture(scope="module")
def page(finished):
    """The parsed report of the finished study."""
    return Page(finished / "report.html")
