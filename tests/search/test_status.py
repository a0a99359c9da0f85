"""Where a study stands, as plain data: the contract that machines read."""

import json

import pytest
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from search import trials
from search.final import finalize
from search.run import search
from search.status import find_run, list_runs, status
from search.suggest import suggest
from search.trials import STATES
from search.worker import owner
from tests.search.helpers import SLOT, Listening, open_tiny

KEYS = {
    "study",
    "counts",
    "reasons",
    "spent",
    "hours",
    "budget",
    "best",
    "workers",
    "test_looks",
    "test",
}


def as_json(folder):
    plain = status(folder)
    assert json.loads(json.dumps(plain)) == plain
    return plain


def test_a_new_study_stands_at_nothing(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s", {"budget.hours": 2})
    plain = as_json(tmp_path / "s")
    assert plain == {
        "study": "s",
        "counts": dict.fromkeys(STATES, 0),
        "reasons": {},
        "spent": 0,
        "hours": 0,
        "budget": {"trials": 3, "hours": 2},
        "best": None,
        "workers": [],
        "test_looks": 0,
        "test": None,
    }
    assert plain.keys() == KEYS


def test_a_finished_study_stands_at_its_best_and_its_test(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened, SLOT, Listening())
    report = finalize(opened, SLOT)
    plain = as_json(tmp_path / "s")
    assert plain.keys() == KEYS
    assert plain["counts"] == dict.fromkeys(STATES, 0) | {"complete": 2}
    assert (plain["spent"], plain["budget"]) == (2, {"trials": 2, "hours": None})
    best = trials.ranked(opened.study.trials)[0]
    assert plain["best"]["number"] == best.number
    assert plain["best"]["value"] == best.value
    assert TrialConfig.from_dict(plain["best"]["config"]).digest() == best.user_attrs["digest"]
    assert plain["test"] == {"dice": report["test"]["dice"], "ci95": report["ci95"]["dice"]}
    assert plain["test_looks"] == 1
    assert 0 < plain["hours"] < 1


def test_every_state_is_counted_and_who_is_at_work_is_named(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    study = opened.study

    def ask():
        trial = study.ask()
        suggest(trial, opened.spec.space)
        return trial

    ended = {"oom": TrialState.FAIL, trials.DUPLICATE: TrialState.FAIL, "time": TrialState.PRUNED}
    for reason, state in ended.items():
        trial = ask()
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=state)
    working = ask()
    working.set_user_attr("owner", {"host": "h", "pid": 7, "since": 1.5})
    working.report(0.1, 1)
    working.report(0.2, 2)
    ask()
    orphan = ask()  # of a process of this host that began before any that runs now
    orphan.set_user_attr("owner", owner() | {"since": 0.0})
    study.enqueue_trial({"model.unet.width": 5})
    plain = as_json(tmp_path / "s")
    assert plain["counts"] == {
        "waiting": 1,
        "running": 3,
        "complete": 0,
        "pruned": 1,
        "failed": 1,
        "skipped": 1,
    }
    assert plain["reasons"] == {"oom": 1, trials.DUPLICATE: 1, "time": 1}
    assert plain["spent"] == 2
    assert plain["workers"] == [
        {"trial": 3, "epoch": 2, "host": "h", "pid": 7, "since": 1.5},
        {"trial": 4, "epoch": 0},
    ]
    assert plain["best"] is None


def test_status_changes_nothing(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s").study._storage.remove_session()
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    status(tmp_path / "s")
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before


def test_runs_are_found_by_path_and_by_name(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a"):
        open_tiny(tiny_data, tmp_path / "runs" / name)
    (tmp_path / "runs" / "no_study").mkdir()
    assert list_runs() == ["a", "b"]
    assert find_run("a").samefile(tmp_path / "runs" / "a")
    assert find_run("runs/a").samefile(tmp_path / "runs" / "a")
    assert find_run(str(tmp_path / "runs" / "b")) == tmp_path / "runs" / "b"
    with pytest.raises(InputError, match=r"^no study 'c' here or under runs/ \(there: a, b\)$"):
        find_run("c")
    with pytest.raises(InputError, match="no study 'no_study'"):
        find_run("no_study")


def test_without_runs_nothing_is_there(tmp_path):
    assert list_runs() == []
    with pytest.raises(InputError, match=r"\(there: none\)"):
        find_run("x")


def test_a_folder_without_study_has_no_status(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        status(tmp_path)
    assert list(tmp_path.glob("*.db")) == []
