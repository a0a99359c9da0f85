"""Where a study stands, as plain data: the contract that machines read."""

import json
from dataclasses import replace
from datetime import datetime

import pytest
from optuna.trial import TrialState, create_trial

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from search.monitoring.status import StudyStatus, find_run, hours_left, list_runs, looking, status
from search.results.final_test import run_final_test
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.storage.process_id import current_process
from search.storage.trial_records import State
from search.study.suggest import suggest
from search.trial_process.slot import Slot
from search.workers.worker import WEIGHTS, load_claimed_trial
from tests.search.helpers import SLOT, open_tiny, queue, search

KEYS = {
    "study",
    "command",
    "counts",
    "reasons",
    "spent",
    "hours",
    "gpu_hours",
    "hours_left",
    "budget",
    "best",
    "queue",
    "running",
    "workers",
    "disk_bytes",
    "test_evaluations",
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
        "command": "run",
        "counts": dict.fromkeys(list(State), 0),
        "reasons": {},
        "spent": 0,
        "hours": 0,
        "gpu_hours": 0,
        "hours_left": 2,  # at no pace at all, what the clock allows
        "budget": {"trials": 3, "hours": 2, "gpu_hours": None},
        "best": None,
        "queue": [],
        "running": [],
        "workers": [],
        "disk_bytes": len((tmp_path / "s" / "trials" / ".study").read_bytes()),
        "test_evaluations": 0,
        "test": None,
    }
    assert plain.keys() == KEYS


def test_a_finished_study_stands_at_its_best_and_its_test(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened)
    report = run_final_test(opened, SLOT)
    plain = as_json(tmp_path / "s")
    assert plain.keys() == KEYS
    assert plain["counts"] == dict.fromkeys(list(State), 0) | {"complete": 2}
    assert (plain["spent"], plain["budget"]) == (
        2,
        {"trials": 2, "hours": None, "gpu_hours": None},
    )
    best = trial_records.rank_trials(opened.study.trials)[0]
    assert plain["best"]["number"] == best.number
    assert plain["best"]["value"] == best.value
    assert TrialConfig.from_dict(plain["best"]["config"]).digest() == best.user_attrs["digest"]
    assert plain["test"] == {"dice": report["test"]["dice"], "ci95": report["ci95"]["dice"]}
    assert plain["test_evaluations"] == 1
    assert 0 < plain["hours"] < 1
    assert (plain["gpu_hours"], plain["hours_left"]) == (0, 0)
    assert (plain["workers"], plain["queue"]) == ([], [])
    files = [p for p in (opened.folder / "trials").rglob("*") if p.is_file()]
    assert plain["disk_bytes"] == sum(p.stat().st_size for p in files)
    assert len([p for p in files if p.name == WEIGHTS]) == 2


def test_every_state_is_counted_and_who_is_at_work_is_named(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 8})
    leases = TrialLeases(opened.study, grace_s=60.0)

    def come(device="cpu", **who):
        slot = Slot(device, 2, 0.5, 4.0)
        return leases.register_worker(slot, replace(current_process(), **who))

    ended = {
        "oom": TrialState.FAIL,
        trial_records.EndReason.DUPLICATE: TrialState.FAIL,
        "time": TrialState.PRUNED,
    }
    first = come()
    for reason, state in ended.items():
        leases.finish(leases.claim(first), state, attrs={"reason": reason})
    leases.deregister_worker(first)
    here, there, idle = come(), come("cuda:1", host="h", pid=7), come(since=0.0)
    claim, theirs = leases.claim(here), leases.claim(there)
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    leases.heartbeat(here, claim, 2)
    queue(opened, width=5)
    leases.enqueue(
        [
            (
                {},
                {
                    trial_records.TrialAttr.BASELINE: "unet-bce",
                    trial_records.TrialAttr.FIXED_CONFIG: {},
                },
            )
        ]
    )
    assert leases.requeue(claim, trial_records.EndReason.INTERRUPTED) == 7
    claim = leases.claim(here)  # goes before what was queued earlier
    assert claim.number == 7
    leases.heartbeat(here, claim, 2)
    leases.command = "pause"
    plain = as_json(tmp_path / "s")
    assert plain["command"] == "pause"
    assert plain["counts"] == {
        "waiting": 2,
        "running": 2,
        "complete": 0,
        "pruned": 1,
        "failed": 1,
        "skipped": 2,
    }
    assert plain["reasons"] == {
        "oom": 1,
        trial_records.EndReason.DUPLICATE: 1,
        "time": 1,
        trial_records.EndReason.INTERRUPTED: 1,
    }
    assert plain["spent"] == 2
    assert plain["queue"] == [
        {"number": 5, "requeued_from": None, "baseline": None},
        {"number": 6, "requeued_from": None, "baseline": "unet-bce"},
    ]
    ages = [worker.pop("beat_seconds_ago") for worker in plain["workers"]]
    assert all(0 <= age < 60 for age in ages)
    common = {"share": 0.5, "threads": 2}
    us = current_process()
    assert plain["workers"] == [
        common
        | {"id": row.id, "host": host, "pid": pid, "device": device, "state": state}
        | {"trial": trial, "epoch": epoch, "silent": silent}
        for row, host, pid, device, state, trial, epoch, silent in [
            (here, us.host, us.pid, "cpu", "training", 7, 2, False),
            (there, "h", 7, "cuda:1", "training", theirs.number, 0, False),
            # Its process number is another process's by now.
            (idle, us.host, us.pid, "cpu", "idle", None, 0, True),
        ]
    ]
    assert plain["best"] is None
    assert [each["number"] for each in plain["running"]] == [theirs.number, 7]
    assert plain["running"][1]["curve"] == []


def test_the_time_that_is_left_follows_from_the_pace_and_from_the_clock(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 4})
    leases = TrialLeases(opened.study)
    row = leases.register_worker(SLOT)
    assert status(tmp_path / "s")["hours_left"] is None
    claim = leases.claim(row)
    leases.finish(claim, TrialState.COMPLETE, 0.5, {"config": TrialConfig().to_dict()})
    trial = opened.study.trials[0]
    took = (trial.user_attrs["ended_at"] - trial.user_attrs["started_at"]) / 3600
    plain = status(tmp_path / "s")
    assert plain["hours"] == pytest.approx(took, abs=1e-6)
    assert plain["hours_left"] == pytest.approx(3 * took, abs=3e-6)
    # More time by the clock than the trials take changes nothing; less of it is the end.
    for hours, left in ((1000.0, 3 * took), (2 * took, took)):
        open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 4, "budget.hours": hours})
        assert status(tmp_path / "s")["hours_left"] == pytest.approx(left, abs=3e-6)


NOW = 2_000_000_000.0


def ended(seconds, number=0):
    attrs = {"started_at": 1000.0 * number, "ended_at": 1000.0 * number + seconds}
    made = create_trial(state=TrialState.PRUNED, user_attrs=attrs)
    made.datetime_start = datetime.now()
    return made


def at_work(seconds, epochs, device="cpu"):
    attrs = {"started_at": NOW - seconds, "owner": {"device": device}}
    values = dict.fromkeys(range(1, epochs + 1), 0.5)
    return create_trial(state=TrialState.RUNNING, user_attrs=attrs, intermediate_values=values)


@pytest.mark.parametrize(
    ("known", "budget", "hours"),
    [
        ([], {}, None),
        ([at_work(3600, 2)], {}, None),  # nothing has ended: no pace
        ([ended(3600)], {}, 9.0),
        # One and a half trials in one and a half hours.
        ([ended(3600), at_work(1800, 2)], {}, 8.5),
        # Two side by side from the same time on: the hours are not added up.
        ([ended(3600), ended(3600)], {}, 4.0),
        ([ended(3600)], {"hours": 3}, 2.0),
        ([ended(3600)] * 12, {}, 0.0),
        ([ended(7200)], {"hours": 1}, 0.0),
        ([at_work(3600, 1, "cuda:0")], {"gpu_hours": 3}, 2.0),
    ],
)
def test_what_is_left_follows_its_rule(monkeypatch, known, budget, hours):
    monkeypatch.setattr(trial_records.time, "time", lambda: NOW)
    left = hours_left(known, {"trials": 10, "epochs": 4} | budget)
    assert left == (None if hours is None else pytest.approx(hours, abs=0.01))


def test_a_standing_sees_what_is_new_over_one_connection(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "runs" / "s", {"budget.trials": 4})
    standing = StudyStatus(tmp_path / "runs" / "s")
    assert standing.look()["spent"] == 0
    leases = TrialLeases(opened.study)
    claim = leases.claim(leases.register_worker(SLOT))
    leases.record_epochs(claim, {1: 0.25, 2: 0.5})
    (running,) = standing.look(disk=False)["running"]
    assert (running["number"], running["curve"]) == (0, [0.25, 0.5])
    leases.finish(claim, TrialState.COMPLETE, 0.5, {"config": TrialConfig().to_dict()})
    now = standing.look(disk=False)
    assert (now["spent"], now["running"], now["disk_bytes"]) == (1, [], None)


def test_all_runs_are_looked_at_and_new_ones_are_found(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    look = looking(None)
    assert look() == []
    open_tiny(tiny_data, tmp_path / "runs" / "b")
    assert [each["study"] for each in look()] == ["b"]
    open_tiny(tiny_data, tmp_path / "runs" / "a")
    assert [each["study"] for each in look(disk=False)] == ["a", "b"]
    assert [each["study"] for each in looking("b")()] == ["b"]


def test_status_changes_nothing(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s").study._storage.remove_session()

    def contents():
        return {str(p): p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}

    before = contents()
    status(tmp_path / "s")
    assert contents() == before


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
