"""Status of a study and its JSON, which other programs read."""

import json
import time
from dataclasses import asdict, replace

import pytest
from optuna.trial import TrialState, create_trial

from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from search.monitoring.status import (
    StatusReader,
    WorkerStatus,
    estimate_hours_left,
    runs_reader,
)
from search.results.final_test import run_final_test
from search.storage import trial_records
from search.storage.lease_types import current_process
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import storage_of
from search.storage.retention import WEIGHTS
from search.storage.trial_records import EndReason, State, TrialAttr
from search.study.deadline import JobClock
from search.study.suggest import suggest
from search.trial_process.slot import Slot
from search.workers.worker import load_claimed_trial
from tests.search.helpers import SLOT, open_tiny, queue, search

NO_COUNTS = dict.fromkeys(map(str, State), 0)
#: Training time after that of other trials.
OTHERS = 1_000_000.0


def read_json(folder):
    """Return the status as it is printed for other programs."""
    plain = asdict(StatusReader(folder).read())
    assert json.loads(json.dumps(plain)) == plain
    return plain


def test_the_time_of_a_job_is_read_from_its_clock(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.total_hours": 2})
    with JobClock(opened, time.monotonic() - 1800):
        job = read_json(tmp_path / "s")["job"]
        assert job == {"spent": pytest.approx(0.5, abs=0.01), "total": 2, "is_running": True}
    assert read_json(tmp_path / "s")["job"]["is_running"] is False


def test_json_of_a_new_study(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s", {"budget.hours": 2})
    assert read_json(tmp_path / "s") == {
        "study": "s",
        "command": "run",
        "counts": NO_COUNTS,
        "reasons": {},
        "finished": 0,
        "hours": 0,
        "gpu_hours": 0,
        "hours_left": 2,  # the limit: there is no speed yet
        "budget": {"trials": 3, "hours": 2, "gpu_hours": None},
        "best": None,
        "queued": [],
        "running": [],
        "workers": [],
        "disk_bytes": len((tmp_path / "s" / "trials" / ".study").read_bytes()),
        "test_evaluations": 0,
        "test": None,
        "encoder_weights": {},
        "job": None,
    }


def test_a_finished_study_has_a_best_trial_and_a_test_result(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2})
    search(opened)
    run_final_test(opened, SLOT)
    metrics = json.loads((tmp_path / "s" / "final" / "metrics.json").read_text())
    plain = read_json(tmp_path / "s")
    assert plain["counts"] == NO_COUNTS | {"complete": 2}
    assert plain["finished"] == 2
    best = trial_records.rank_trials(opened.study.trials)[0]
    assert (plain["best"]["number"], plain["best"]["value"]) == (best.number, best.value)
    assert TrialConfig.from_dict(plain["best"]["config"]).digest() == best.user_attrs["digest"]
    assert plain["test"] == {"dice": metrics["test"]["dice"], "ci95": metrics["ci95"]["dice"]}
    assert plain["test_evaluations"] == 1
    assert 0 < plain["hours"] < 1
    assert (plain["gpu_hours"], plain["hours_left"]) == (0, 0)
    assert (plain["workers"], plain["queued"]) == ([], [])
    files = [p for p in (opened.folder / "trials").rglob("*") if p.is_file()]
    assert plain["disk_bytes"] == sum(p.stat().st_size for p in files)
    assert len([p for p in files if p.name == WEIGHTS]) == 2


def test_all_states_workers_and_the_queue_are_listed(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 8})
    leases = TrialLeases(opened.study, grace_s=60.0)

    def register(device="cpu", **process):
        slot = Slot(device, 2, 0.5, 4.0)
        return leases.register_worker(slot, replace(current_process(), **process))

    ended = {
        EndReason.OOM: TrialState.FAIL,
        EndReason.DUPLICATE: TrialState.FAIL,
        EndReason.OUT_OF_TIME: TrialState.PRUNED,
    }
    first = register()
    for reason, state in ended.items():
        leases.finish(leases.claim(first), state, attrs={"reason": reason})
    leases.deregister_worker(first)
    local, remote, exited = (
        register(),
        register("cuda:1", host="h", pid=7),
        register(start_time=0.0),
    )
    claim, remote_claim = leases.claim(local), leases.claim(remote)
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    leases.heartbeat(local, claim, 2)
    queue(opened, width=5)
    leases.enqueue([({}, {TrialAttr.BASELINE: "unet-bce", TrialAttr.FIXED_CONFIG: {}})])
    assert leases.requeue(claim, EndReason.INTERRUPTED) == 7
    claim = leases.claim(local)  # requeued trials come first
    assert claim.number == 7
    leases.heartbeat(local, claim, 2)
    leases.command = "pause"
    plain = read_json(tmp_path / "s")
    assert plain["command"] == "pause"
    assert plain["counts"] == NO_COUNTS | {
        "waiting": 2, "running": 2, "pruned": 1, "failed": 1, "closed": 2,
    }  # fmt: skip
    assert plain["reasons"] == {"oom": 1, "duplicate": 1, "time": 1, "interrupted": 1}
    assert plain["finished"] == 2
    assert plain["queued"] == [
        {"number": 5, "requeued_from": None, "baseline": None},
        {"number": 6, "requeued_from": None, "baseline": "unet-bce"},
    ]
    assert all(0 <= worker["seconds_since_heartbeat"] < 60 for worker in plain["workers"])
    this = current_process()
    rows = [
        (local, this.host, this.pid, "cpu", "training", 7, 2, False),
        (remote, "h", 7, "cuda:1", "training", remote_claim.number, 0, False),
        # Another process has its process number by now.
        (exited, this.host, this.pid, "cpu", "idle", None, 0, True),
    ]
    expected = [
        asdict(WorkerStatus(row.id, host, pid, device, 0.5, 2, state, trial, epoch, 0.0, expired))
        for row, host, pid, device, state, trial, epoch, expired in rows
    ]
    assert [w | {"seconds_since_heartbeat": 0.0} for w in plain["workers"]] == expected
    assert plain["best"] is None
    assert [trial["number"] for trial in plain["running"]] == [remote_claim.number, 7]
    assert plain["running"][1]["curve"] == []


def make_pruned(seconds):
    attrs = {"training_start_s": 0.0, "training_end_s": seconds}
    return create_trial(state=TrialState.PRUNED, user_attrs=attrs)


def make_running(seconds, epochs, device="cpu"):
    attrs = {"training_start_s": OTHERS, "training_end_s": OTHERS + seconds}
    attrs |= {"owner": {"device": device}}
    values = dict.fromkeys(range(1, epochs + 1), 0.5)
    return create_trial(state=TrialState.RUNNING, user_attrs=attrs, intermediate_values=values)


@pytest.mark.parametrize(
    ("trials", "budget", "hours"),
    [
        ([], {}, None),
        ([make_running(3600, 2)], {}, None),  # no trial has finished
        ([make_pruned(3600)], {}, 9.0),
        ([make_pruned(3600), make_running(1800, 2)], {}, 8.5),  # 1.5 trials in 1.5 hours
        ([make_pruned(3600), make_pruned(3600)], {}, 4.0),  # at the same time
        ([make_pruned(3600)], {"hours": 3}, 2.0),
        ([make_pruned(3600)] * 12, {}, 0.0),
        ([make_pruned(7200)], {"hours": 1}, 0.0),
        ([make_running(3600, 1, "cuda:0")], {"gpu_hours": 3}, 2.0),
    ],
)
def test_hours_left_are_the_smallest_of_three_estimates(trials, budget, hours):
    estimate = estimate_hours_left(trials, {"trials": 10, "epochs": 4} | budget)
    assert estimate == (None if hours is None else pytest.approx(hours, abs=0.01))


def test_a_reader_sees_changes_over_one_connection(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 4})
    reader = StatusReader(tmp_path / "s")
    assert reader.read().finished == 0
    leases = TrialLeases(opened.study)
    claim = leases.claim(leases.register_worker(SLOT))
    leases.record_epochs(claim, {1: 0.25, 2: 0.5, 3: float("nan")})
    (running,) = reader.read(measure_disk=False).running
    assert (running.number, running.curve) == (0, [0.25, 0.5, None])
    leases.finish(claim, TrialState.COMPLETE, 0.5, {"config": TrialConfig().to_dict()})
    status = reader.read(measure_disk=False)
    assert (status.finished, status.running, status.disk_bytes) == (1, [], None)


def test_all_runs_are_read_and_new_ones_are_found(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = runs_reader(None, None, pytest.fail)
    assert read() == []
    open_tiny(tiny_data, tmp_path / "runs" / "b")
    assert [status.study for status in read()] == ["b"]
    open_tiny(tiny_data, tmp_path / "runs" / "a")
    assert [status.study for status in read(measure_disk=False)] == ["a", "b"]
    assert [status.study for status in runs_reader("b", None, pytest.fail)()] == ["b"]


def test_reading_a_status_changes_no_file(tiny_data, tmp_path):
    storage_of(open_tiny(tiny_data, tmp_path / "s").study).remove_session()

    def contents():
        return {str(p): p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}

    before = contents()
    StatusReader(tmp_path / "s").read()
    assert contents() == before


def test_a_folder_without_a_study_has_no_status(tmp_path):
    with pytest.raises(InputError, match="no study here"):
        StatusReader(tmp_path).read()
    assert list(tmp_path.glob("*.db")) == []
