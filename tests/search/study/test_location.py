"""Studies by path and by name."""

from pathlib import Path

import pytest

from search.study.location import find_run, list_runs
from tests.search.helpers import refusal


@pytest.fixture
def runs():
    """Studies ``runs/a``, ``runs/b`` and ``c``; other folders ``b`` and ``runs/c``."""
    for folder in ("runs/a", "runs/b", "c", "b", "runs/c"):
        Path(folder).mkdir(parents=True)
    for folder in ("runs/a", "runs/b", "c"):
        Path(folder, "run.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a", "runs/a"), ("runs/a", "runs/a"), ("b", "runs/b"), ("c", "c"), ("./runs/b/", "runs/b")],
)
def test_runs_are_found_by_path_and_by_name(runs, name, folder):
    assert list_runs() == ["a", "b"]
    assert find_run(name) == Path(folder)
    assert find_run(str(Path(folder).absolute())).samefile(folder)


@pytest.mark.parametrize("name", ["no_study", "runs/c", "x" * 300, "nul\0"])
def test_the_places_without_a_study_are_named(runs, name):
    assert refusal(find_run, name) == (
        f"no study {name!r}: looked in {name} and runs/{name} (studies under runs/: a, b)"
    )


def test_an_absolute_path_is_one_place(tmp_path):
    message = f"no study '{tmp_path}': looked in {tmp_path} (studies under runs/: none)"
    assert refusal(find_run, str(tmp_path)) == message
