"""Claims, leases and requeues on both kinds of database, checked through Optuna's API."""

from __future__ import annotations

import concurrent.futures
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import optuna
import psutil
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import event, text

from lesionseg.errors import InputError
from search.storage import trial_records
from search.storage.database import open_storage, storage_url
from search.storage.lease_types import (
    Claim,
    Command,
    ProcessId,
    WorkerExpired,
    current_process,
    start_time_of,
)
from search.storage.leases import TrialLeases
from search.storage.optuna_internals import study_id, trial_id
from search.storage.retrying_storage import StudyDeleted, backend_of, bind_storage
from search.storage.study_rows import MAX_LOSSES, StudyRows
from search.storage.training_time import hours_spent, seconds_of
from search.storage.trial_records import EndReason, all_trials
from search.trial_process.slot import Slot
from tests.search.helpers import LONG_WAIT_S

SLOT = Slot("cpu", 1)
SPEC = {"budget": {"trials": 3}}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return request.getfixturevalue("postgres_url")


def new_study(url: str, budget: int = 3) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", storage=open_storage(storage_url(url, None)), direction="maximize"
    )
    study.set_user_attr("spec", {"budget": {"trials": budget}})
    return study


def reopen(url: str, **kwargs) -> TrialLeases:
    """The leases of the study as another process opens them."""
    storage = open_storage(storage_url(url, None))
    return TrialLeases(optuna.load_study(study_name="s", storage=storage), **kwargs)


@pytest.fixture
def study(url):
    return new_study(url)


@pytest.fixture
def leases(study):
    return TrialLeases(study, grace_s=60)


def states(study) -> list[str]:
    return [trial_records.state_of(t) for t in study.get_trials()]


def claim_trial(leases: TrialLeases, worker=None) -> Claim:
    claim = leases.claim(worker or leases.register_worker(SLOT))
    assert isinstance(claim, Claim)
    return claim


# --- new studies -------------------------------------------------------------------------------


def test_a_study_is_initialized_once_with_its_queue(url):
    storage = open_storage(storage_url(url, None))
    study = optuna.create_study(study_name="new", storage=storage)
    first = TrialLeases(study).initialize_study(
        {"spec": {"a": 1}, "uuid": "x"}, [({"p": 1}, {"baseline": "a"})]
    )
    second = TrialLeases(study).initialize_study({"spec": {"a": 2}, "uuid": "y"}, [({"p": 2}, {})])
    assert (first, second) == (True, False)
    assert study.user_attrs == {"spec": {"a": 1}, "uuid": "x"}
    (waiting,) = study.get_trials()
    assert waiting.state == TrialState.WAITING
    assert waiting.system_attrs == {"fixed_params": {"p": 1}}
    assert waiting.user_attrs == {"baseline": "a"}


# --- claims ------------------------------------------------------------------------------------


def test_a_claimed_trial_is_running_and_has_an_owner(study, leases):
    worker = leases.register_worker(SLOT)
    claim = claim_trial(leases, worker)
    (trial,) = study.get_trials()
    assert (trial.number, trial_id(trial)) == (claim.number, claim.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.datetime_start is not None
    owner = trial.user_attrs["owner"]
    assert (owner["worker"], owner["pid"], owner["device"]) == (worker.id, os.getpid(), "cpu")
    assert trial.user_attrs["started_at"] == pytest.approx(time.time(), abs=5)
    (row,) = leases.list_workers()
    assert (row.trial, row.state) == (0, "training")


def test_a_repeated_claim_returns_the_same_trial(study, leases):
    worker = leases.register_worker(SLOT)
    assert leases.claim(worker) == leases.claim(worker)
    assert len(study.get_trials()) == 1


def test_running_trials_count_against_the_budget(study, leases):
    workers = [leases.register_worker(SLOT) for _ in range(5)]
    got = [leases.claim(w) for w in workers]
    assert [isinstance(g, Claim) for g in got] == [True, True, True, False, False]
    assert got[3:] == ["full", "full"]
    leases.finish(got[0], TrialState.COMPLETE, 0.5)
    assert leases.claim(workers[0]) == "full"  # one finished and two running
    # A closed trial leaves room for another one.
    leases.finish(got[1], TrialState.FAIL, attrs={"reason": EndReason.DUPLICATE})
    assert isinstance(leases.claim(workers[1]), Claim)
    for w, claim in zip(workers[1:3], [leases.claim(workers[1]), got[2]], strict=True):
        assert leases.finish(claim, TrialState.PRUNED)
        assert w
    assert leases.claim(workers[4]) == "spent"
    assert leases.run(StudyRows.count_trials) == (3, 0)


def test_a_raised_budget_applies_at_once(study, leases):
    worker = leases.register_worker(SLOT)
    study.set_user_attr("spec", {"budget": {"trials": 1}})
    leases.finish(claim_trial(leases, worker), TrialState.COMPLETE, 0.5)
    assert leases.claim(worker) == "spent"
    study.set_user_attr("spec", {"budget": {"trials": 2}})
    assert isinstance(leases.claim(worker), Claim)


def test_requeued_trials_come_first_in_the_queue(study, leases):
    study.enqueue_trial({"x": 1})
    study.enqueue_trial({"x": 2})
    cut = claim_trial(leases)
    assert cut.number == 0
    assert leases.requeue(cut, EndReason.INTERRUPTED) == 2
    assert claim_trial(leases).number == 2
    assert claim_trial(leases).number == 1


def test_fresh_false_claims_from_the_queue_only(study, leases):
    worker, other = leases.register_worker(SLOT), leases.register_worker(SLOT)
    assert leases.claim(worker, fresh=False) == "spent"
    study.enqueue_trial({"x": 1})
    claim = leases.claim(worker, fresh=False)
    assert isinstance(claim, Claim)
    assert leases.claim(other, fresh=False) == "full"  # the running trial may be requeued
    leases.finish(claim, TrialState.COMPLETE, 1.0)
    assert leases.claim(other, fresh=False) == "spent"


def race(url: str, barrier, results, budget: int) -> None:
    leases = reopen(url)
    worker, numbers, peak = leases.register_worker(SLOT), [], 0
    barrier.wait(60)
    while (claim := leases.claim(worker)) != "spent":
        peak = max(peak, sum(leases.run(StudyRows.count_trials)))
        if isinstance(claim, Claim):
            numbers.append(claim.number)
            leases.finish(claim, TrialState.COMPLETE, float(claim.number))
    results.put((numbers, peak))


def test_racing_processes_claim_every_trial_once_within_the_budget(url):
    budget = 12
    study = new_study(url, budget)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=race, args=(url, barrier, results, budget)) for _ in range(3)
    ]
    for each in processes:
        each.start()
    results_of_all = [results.get(timeout=90) for _ in processes]
    for each in processes:
        each.join(30)
    assert sorted(n for numbers, _ in results_of_all for n in numbers) == list(range(budget))
    assert max(peak for _, peak in results_of_all) <= budget
    assert [t.value for t in study.get_trials()] == [float(n) for n in range(budget)]


# --- configurations ----------------------------------------------------------------------------


def test_a_configuration_is_recorded_for_one_trial(study, leases):
    first, second, third = (claim_trial(leases) for _ in range(3))
    assert leases.record_config(first, {"digest": "d", "config": {"a": 1}}, "d") is None
    assert leases.record_config(second, {"digest": "d"}, "d") == first.number
    assert "digest" not in study.get_trials()[1].user_attrs
    assert leases.record_config(third, {"digest": "d"}, None) is None  # duplicates are allowed
    assert study.get_trials()[0].user_attrs["config"] == {"a": 1}


def test_a_closed_trial_is_no_duplicate(study, leases):
    first = claim_trial(leases)
    leases.record_config(first, {"digest": "d"}, "d")
    leases.finish(first, TrialState.PRUNED, attrs={"reason": EndReason.CONSTRAINT})
    second = claim_trial(leases)
    assert leases.record_config(second, {"digest": "d"}, "d") is None


def test_a_requeued_trial_is_a_duplicate_for_others_only(study, leases):
    study.enqueue_trial({"x": 1})
    first = claim_trial(leases)
    leases.record_config(first, {"digest": "d"}, "d")
    successor = leases.requeue(first, EndReason.LOST)
    other = leases.register_worker(SLOT)
    # Another worker's trial that does not come from the queue.
    fresh = leases.run(
        lambda rows: rows.start_trial(
            leases.storage.add_trial(rows.study_id, None, rows.session), other
        )
    )
    assert leases.record_config(fresh, {"digest": "d"}, "d") == successor
    requeued = claim_trial(leases)
    assert requeued.number == successor
    assert leases.record_config(requeued, {"digest": "d"}, "d") is None


# --- results -----------------------------------------------------------------------------------


def test_finish_writes_state_value_and_attributes(study, leases):
    worker = leases.register_worker(SLOT)
    claim = claim_trial(leases, worker)
    leases.record_epochs(claim, {1: 0.25, 2: math.nan})
    leases.set_trial_attrs(claim, {"params": 7})
    assert leases.finish(claim, TrialState.COMPLETE, 0.75, {"epochs": 2})
    (trial,) = study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.75)
    assert trial.intermediate_values[1] == 0.25
    assert math.isnan(trial.intermediate_values[2])
    assert trial.user_attrs["params"] == 7
    assert trial.user_attrs["epochs"] == 2
    assert trial.user_attrs["ended_at"] >= trial.user_attrs["started_at"]
    assert trial.datetime_complete >= trial.datetime_start
    # Repeated after a lost acknowledgement.
    assert leases.finish(claim, TrialState.COMPLETE, 0.75, {"epochs": 2})
    assert not leases.finish(claim, TrialState.FAIL)
    (row,) = leases.list_workers()
    assert (row.trial, row.state) == (None, "idle")


def test_values_of_epochs_are_overwritten(study, leases):
    claim = claim_trial(leases)
    leases.record_epochs(claim, {1: 0.1, 2: 0.2})
    leases.record_epochs(claim, {2: 0.3, 3: 0.4})
    assert study.get_trials()[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.4}


def test_a_worker_without_the_lease_cannot_write(study, leases):
    study.enqueue_trial({"x": 1})
    claim = claim_trial(leases)
    stale = optuna.Trial(study, claim.trial_id)
    assert leases.requeue(claim, EndReason.LOST) == 1
    assert not leases.finish(claim, TrialState.COMPLETE, 0.9)
    with pytest.raises(UpdateFinishedTrialError):
        stale.report(0.5, 1)
    with pytest.raises(UpdateFinishedTrialError):
        leases.set_trial_attrs(claim, {"x": 1})
    with pytest.raises(UpdateFinishedTrialError):
        leases.record_epochs(claim, {1: 0.5})
    cut, waiting = study.get_trials()
    assert (trial_records.state_of(cut), trial_records.reason_of(cut)) == (
        "closed",
        EndReason.LOST,
    )
    assert cut.value is None
    assert waiting.state == TrialState.WAITING


# --- requeues ----------------------------------------------------------------------------------


def test_a_requeued_trial_keeps_parameters_attributes_and_attempts(study, leases):
    study.enqueue_trial({"x": 3, "y": 4}, user_attrs={"baseline": "p", "fixed_config": {"a": 1}})
    numbers = []
    for _ in range(3):
        claim = claim_trial(leases)
        numbers.append(claim.number)
        study.get_trials()  # fills Optuna's cache
        trial = optuna.Trial(study, claim.trial_id)
        assert trial.suggest_int("x", 0, 9) == 3  # y, a conditional parameter, is not sampled
        assert leases.requeue(claim, EndReason.INTERRUPTED) == claim.number + 1
    last = study.get_trials()[-1]
    assert last.state == TrialState.WAITING
    assert last.system_attrs == {"fixed_params": {"x": 3, "y": 4}}
    assert last.user_attrs == {
        "baseline": "p",
        "fixed_config": {"a": 1},
        "requeued_from": 0,
        "attempts": numbers,
    }


def test_a_trial_without_parameters_is_not_requeued(study, leases):
    claim = claim_trial(leases)
    assert leases.requeue(claim, EndReason.LOST) is None
    assert states(study) == ["closed"]


def test_a_finished_trial_is_not_requeued(study, leases):
    claim = claim_trial(leases)
    leases.finish(claim, TrialState.COMPLETE, 0.5)
    assert leases.requeue(claim, EndReason.INTERRUPTED) is None
    assert states(study) == ["complete"]


def test_a_trial_lost_too_often_fails(study, leases):
    study.enqueue_trial({"x": 1})
    for _ in range(MAX_LOSSES):
        assert leases.requeue(claim_trial(leases), EndReason.LOST) is not None
    # An interruption does not count as a loss.
    assert leases.requeue(claim_trial(leases), EndReason.INTERRUPTED) is not None
    assert leases.requeue(claim_trial(leases), EndReason.LOST) is None
    assert states(study) == ["closed"] * (MAX_LOSSES + 1) + ["failed"]
    last = study.get_trials()[-1]
    assert last.user_attrs["reason"] == "crash"
    assert last.user_attrs["message"] == "its worker died with it 4 times"
    assert leases.run(StudyRows.count_trials) == (1, 0)


# --- workers and heartbeats --------------------------------------------------------------------


def test_workers_have_ids_and_ordinals(leases):
    rows = [leases.register_worker(replace(SLOT, device=f"cuda:{i}", share=0.5)) for i in range(3)]
    assert [r.ordinal for r in rows] == [0, 1, 2]
    assert len({r.id for r in rows}) == 3
    listed = leases.list_workers()
    assert [r.slot.device for r in listed] == ["cuda:0", "cuda:1", "cuda:2"]
    assert all(r.slot.share == 0.5 and r.process == current_process() for r in listed)
    assert all(r.heartbeat_age_s < 5 for r in listed)
    leases.deregister_worker(rows[1])
    assert [r.ordinal for r in leases.list_workers()] == [0, 2]
    assert leases.register_worker(SLOT).ordinal == 3


def test_a_heartbeat_returns_the_command_and_whether_the_lease_holds(study, leases):
    worker = leases.register_worker(SLOT)
    study.enqueue_trial({"x": 1})
    assert leases.heartbeat(worker) == ("run", True)
    claim = claim_trial(leases, worker)
    leases.command = Command.PAUSE
    assert leases.heartbeat(worker, claim, epoch=4) == ("pause", True)
    assert leases.list_workers()[0].epoch == 4
    leases.requeue(claim, EndReason.LOST)
    assert leases.heartbeat(worker, claim) == ("pause", False)
    assert leases.heartbeat(worker) == ("pause", True)
    leases.deregister_worker(worker)
    assert leases.heartbeat(worker) == ("pause", False)


def test_a_deregistered_worker_cannot_claim(leases):
    worker = leases.register_worker(SLOT)
    leases.deregister_worker(worker)
    with pytest.raises(WorkerExpired):
        leases.claim(worker)


def exited_process() -> ProcessId:
    process = subprocess.Popen(["true"])
    start_time = start_time_of(process.pid)
    process.wait()
    return replace(current_process(), pid=process.pid, start_time=start_time)


def test_trials_of_exited_processes_are_requeued_at_once(study, leases):
    for x in range(3):
        study.enqueue_trial({"x": x})
    dead, alive = leases.register_worker(SLOT, exited_process()), leases.register_worker(SLOT)
    elsewhere = leases.register_worker(SLOT, replace(exited_process(), host="elsewhere"))
    other_namespace = replace(exited_process(), pid_namespace="another container's")
    fourth = leases.register_worker(SLOT, other_namespace)
    claims = [claim_trial(leases, w) for w in (dead, alive, elsewhere)]
    assert leases.reap_expired() == [(claims[0].number, 3)]
    assert states(study) == ["closed", "running", "running", "waiting"]
    assert [r.id for r in leases.list_workers()] == [alive.id, elsewhere.id, fourth.id]
    assert leases.reap_expired() == []


class Clock:
    """A monotonic clock that a test sets. step: seconds added to the clock of the database."""

    def __init__(self, monkeypatch) -> None:
        self.seconds, self.step, real = 1000.0, 0.0, StudyRows.now
        monkeypatch.setattr(StudyRows, "now", lambda rows: real(rows) + self.step)

    def __call__(self) -> float:
        return self.seconds


#: Steps of the clock of the database, which is the host's with SQLite.
STEPS = pytest.mark.parametrize("step", [-1e6, 0.0, 61.0, 1e6])


@STEPS
def test_a_worker_expires_by_its_silence_alone(study, monkeypatch, step):
    clock = Clock(monkeypatch)
    leases = TrialLeases(study, grace_s=60, clock=clock)
    for x in range(2):
        study.enqueue_trial({"x": x})
    silent, alive = (
        leases.register_worker(SLOT, replace(current_process(), host=f"h{i}")) for i in range(2)
    )
    claim, other = claim_trial(leases, silent), claim_trial(leases, alive)
    assert leases.reap_expired() == []
    clock.step = step
    reaped = []
    for _ in range(4):
        clock.seconds += 20
        leases.heartbeat(alive, other)
        reaped.append(leases.reap_expired())
    assert reaped == [[], [], [], [(claim.number, 2)]]
    # The silent worker has lost its lease and must register again.
    assert leases.heartbeat(silent, claim) == ("run", False)
    assert not leases.finish(claim, TrialState.COMPLETE, 1.0)
    with pytest.raises(WorkerExpired):
        leases.claim(silent)


def test_a_worker_does_not_expire_while_this_process_was_suspended(study, monkeypatch):
    clock = Clock(monkeypatch)
    leases = TrialLeases(study, grace_s=60, clock=clock)
    study.enqueue_trial({"x": 0})
    claim = claim_trial(leases, leases.register_worker(SLOT, replace(current_process(), host="h")))
    leases.reap_expired()
    reaped = []
    for seconds in (3600, 20, 20, 25):  # a suspended host suspends all its workers
        clock.seconds += seconds
        reaped += leases.reap_expired()
    assert reaped == [(claim.number, 1)]


@STEPS
def test_training_time_is_that_of_the_workers_monotonic_clocks(study, monkeypatch, step):
    clock = Clock(monkeypatch)
    leases = TrialLeases(study, clock=clock)
    workers = [leases.register_worker(SLOT) for _ in range(2)]
    for x in range(3):
        study.enqueue_trial({"x": x})
    first = claim_trial(leases, workers[0])
    clock.seconds += 10
    leases.record_training_time(first)
    second = claim_trial(leases, workers[1])
    clock.seconds, clock.step = clock.seconds + 10, step
    assert leases.finish(first, TrialState.COMPLETE, 0.5)
    clock.seconds += 10
    assert leases.finish(second, TrialState.PRUNED)
    clock.seconds += 1000  # no worker trains
    third = claim_trial(leases, workers[0])
    clock.seconds += 5
    leases.record_training_time(third)
    clock.seconds += 7  # after its last record, until it is lost
    study.get_trials()
    leases.deregister_worker(workers[0])
    assert leases.reap_expired() == [(third.number, 3)]
    trials = all_trials(study)
    assert [seconds_of(trial) for trial in trials] == [20.0, 20.0, 5.0, None]
    assert hours_spent(trials) * 3600 == pytest.approx(35)
    leases.record_training_time(first)  # by a delayed heartbeat thread
    assert all_trials(study)[0].user_attrs == trials[0].user_attrs


def test_a_running_trial_without_a_worker_is_requeued(study, leases):
    study.enqueue_trial({"x": 1})
    study.ask()  # by another program, without a worker
    assert leases.reap_expired() == [(0, 1)]


def claim_and_hang(url: str, results) -> None:
    leases = reopen(url)
    results.put(claim_trial(leases).number)
    time.sleep(60)


def test_the_trial_of_a_killed_process_is_requeued(url, study, leases):
    study.enqueue_trial({"x": 1})
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=claim_and_hang, args=(url, results))
    process.start()
    number = results.get(timeout=60)
    assert leases.reap_expired() == []
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert leases.reap_expired() == [(number, 1)]


def test_a_process_has_exited_only_where_it_can_be_seen():
    me = current_process()
    assert not me.has_exited()
    assert exited_process().has_exited()
    assert replace(me, start_time=me.start_time - 100).has_exited()  # the pid was reused
    assert not replace(exited_process(), host="elsewhere").has_exited()
    assert not replace(exited_process(), pid_namespace="elsewhere").has_exited()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the boot's time is in /proc")
def test_a_step_of_the_clock_ends_no_process(monkeypatch):
    me, boot_time = current_process(), psutil.boot_time()
    # The kernel computes the time of the boot from the clock and the time since the boot.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 3600)
    assert not me.has_exited()


# --- deleted studies ---------------------------------------------------------------------------


def count_workers(leases: TrialLeases) -> int:
    with leases.storage.engine.begin() as connection:
        return connection.execute(text("SELECT count(*) FROM lesionsearch_workers")).scalar()


def test_deleting_a_study_deletes_its_workers(url, study, leases):
    leases.register_worker(SLOT)
    optuna.delete_study(study_name="s", storage=leases.storage)
    if "postgresql" in url:  # SQLite checks no foreign keys
        assert count_workers(leases) == 0
    next_study = TrialLeases(new_study(url))
    with next_study.storage.engine.begin() as connection:
        connection.execute(text("UPDATE lesionsearch_workers SET study_id = :i"),
                           {"i": study_id(next_study.study)})  # fmt: skip
    next_study.study.set_user_attr("spec", None)
    next_study.initialize_study({"spec": SPEC}, [])
    assert count_workers(next_study) == 0


#: Operations of the worker of a deleted study; each gets its leases, worker, claim and trial.
OPERATIONS = {
    "claim": lambda ls, w, c, t: ls.claim(w),
    "heartbeat": lambda ls, w, c, t: ls.heartbeat(w, c),
    "register": lambda ls, w, c, t: ls.register_worker(SLOT),
    "deregister": lambda ls, w, c, t: ls.deregister_worker(w),
    "training_time": lambda ls, w, c, t: ls.record_training_time(c),
    "record_config": lambda ls, w, c, t: ls.record_config(c, {"digest": "d"}, "d"),
    "set_trial_attrs": lambda ls, w, c, t: ls.set_trial_attrs(c, {"a": 1}),
    "record_epochs": lambda ls, w, c, t: ls.record_epochs(c, {1: 0.5}),
    "finish": lambda ls, w, c, t: ls.finish(c, TrialState.COMPLETE, 0.5),
    "requeue": lambda ls, w, c, t: ls.requeue(c, EndReason.INTERRUPTED),
    "enqueue": lambda ls, w, c, t: ls.enqueue([({"x": 1}, {})]),
    "reap": lambda ls, w, c, t: ls.reap_expired(),
    "workers": lambda ls, w, c, t: ls.list_workers(),
    "read_command": lambda ls, w, c, t: ls.command,
    "send_command": lambda ls, w, c, t: setattr(ls, "command", Command.STOP),
    "report": lambda ls, w, c, t: t.report(0.5, 3),
    "set_user_attr": lambda ls, w, c, t: t.set_user_attr("a", 1),
    "set_constraint": lambda ls, w, c, t: t.set_constraint("a", 1.0),
    "suggest": lambda ls, w, c, t: t.suggest_float("y", 0, 1),
    "trials": lambda ls, w, c, t: ls.study.get_trials(),
    "ask": lambda ls, w, c, t: ls.study.ask(),
    "study_attr": lambda ls, w, c, t: ls.study.set_user_attr("a", 1),
    "study_attrs": lambda ls, w, c, t: ls.study.user_attrs,
}


@pytest.mark.parametrize("tables", ["ours", "optuna's"])
def test_a_worker_of_a_deleted_study_writes_into_no_other_study(url, tables):
    if tables == "optuna's":  # without AUTOINCREMENT: SQLite uses the ids again
        optuna.storages.RDBStorage(url)
    study = new_study(url)
    study.set_user_attr("uuid", "first")
    leases = TrialLeases(bind_storage(study))
    worker = leases.register_worker(SLOT)
    claim = claim_trial(leases, worker)
    all_trials(study)
    trial = optuna.Trial(study, claim.trial_id)
    trial.report(0.25, 1)

    def assert_refused() -> None:
        for name, operation in OPERATIONS.items():
            with pytest.raises(StudyDeleted) as caught:
                operation(leases, worker, claim, trial)
            assert "no longer holds the study 's' that this process opened" in str(caught.value), (
                name
            )
            assert "\n" not in str(caught.value)

    storage = open_storage(storage_url(url, None))
    optuna.delete_study(study_name="s", storage=storage)
    assert_refused()
    other = TrialLeases(new_study(url))
    other.study.set_user_attr("uuid", "second")
    others_claim = claim_trial(other)
    if "sqlite" in url:
        reused = study_id(other.study) == study_id(study), others_claim.trial_id == claim.trial_id
        assert reused == (tables == "optuna's",) * 2
    before = other.study.get_trials(), other.study.user_attrs
    assert_refused()
    other = reopen(url)
    assert (other.study.get_trials(), other.study.user_attrs) == before


def test_a_study_that_is_deleted_within_a_write_is_reported_as_deleted(postgres_url):
    study = new_study(postgres_url)
    claim = claim_trial(TrialLeases(bind_storage(study)))
    storage = open_storage(storage_url(postgres_url, None))

    def delete(_) -> None:
        optuna.delete_study(study_name="s", storage=storage)

    # After the check of the study.
    event.listen(backend_of(study).engine, "begin", delete, once=True)
    with pytest.raises(StudyDeleted):
        backend_of(study).set_trial_user_attr(claim.trial_id, "a", 1)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_an_invalid_grace_period_is_rejected(study, monkeypatch, value):
    monkeypatch.setenv("LESIONSEARCH_GRACE", value)
    with pytest.raises(InputError, match="LESIONSEARCH_GRACE: must be seconds above 0, got"):
        TrialLeases(study)


@pytest.mark.parametrize(
    "write",
    [
        lambda leases, claim: leases.record_epochs(claim, {1: 0.5}),
        lambda leases, claim: leases.set_trial_attrs(claim, {"a": 1}),
        lambda leases, claim: leases.record_training_time(claim),
    ],
    ids=["epochs", "attributes", "training time"],
)
def test_a_write_that_waits_for_the_end_of_its_trial_is_refused(study, leases, write):
    claim = claim_trial(leases)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with backend_of(study).engine.begin() as connection:
            end = text("UPDATE trials SET state = 'FAIL' WHERE trial_id = :id")
            connection.execute(end, {"id": claim.trial_id})
            written = pool.submit(write, leases, claim)
            assert concurrent.futures.wait([written], 0.5).not_done  # it waits for the other one
        error = written.exception(LONG_WAIT_S)
    assert error is None or isinstance(error, UpdateFinishedTrialError)
    (after,) = TrialLeases(study).study.get_trials()
    assert after.intermediate_values == {}
    assert "a" not in after.user_attrs
    assert after.user_attrs["training_end_s"] == 0.0
