"""Claims, leases and hand-backs on both kinds of database, seen through Optuna's own eyes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import replace

import optuna
import psutil
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import text

from lesionseg.errors import InputError
from search.storage import trial_records
from search.storage.database import open_storage, storage_url
from search.storage.lease_transaction import MAX_LOSSES
from search.storage.lease_types import Claim, Command, WorkerExpired
from search.storage.leases import TrialLeases
from search.storage.process_id import ProcessId, current_process
from search.trial_process.slot import Slot

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


def again(url: str, **kwargs) -> TrialLeases:
    """The books as another process of the same study opens them."""
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


def taken(leases: TrialLeases, worker=None) -> Claim:
    claim = leases.claim(worker or leases.register_worker(SLOT))
    assert isinstance(claim, Claim)
    return claim


# --- founding ----------------------------------------------------------------------------------


def test_a_study_is_founded_once_with_its_queue(url):
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


def test_a_claim_is_a_running_trial_with_its_owner(study, leases):
    worker = leases.register_worker(SLOT)
    claim = taken(leases, worker)
    (trial,) = study.get_trials()
    assert (trial.number, trial._trial_id) == (claim.number, claim.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.datetime_start is not None
    owner = trial.user_attrs["owner"]
    assert (owner["worker"], owner["pid"], owner["device"]) == (worker.id, os.getpid(), "cpu")
    assert trial.user_attrs["started_at"] == pytest.approx(time.time(), abs=5)
    (row,) = leases.list_workers()
    assert (row.trial, row.state) == (0, "training")


def test_a_claim_whose_answer_was_lost_is_answered_again(study, leases):
    worker = leases.register_worker(SLOT)
    assert leases.claim(worker) == leases.claim(worker)
    assert len(study.get_trials()) == 1


def test_no_moment_sees_more_trials_than_the_budget(study, leases):
    workers = [leases.register_worker(SLOT) for _ in range(5)]
    got = [leases.claim(w) for w in workers]
    assert [isinstance(g, Claim) for g in got] == [True, True, True, False, False]
    assert got[3:] == ["full", "full"]
    leases.finish(got[0], TrialState.COMPLETE, 0.5)
    assert leases.claim(workers[0]) == "full"  # one done and two at work are three
    # One that was skipped leaves room for another.
    leases.finish(got[1], TrialState.FAIL, attrs={"reason": trial_records.EndReason.DUPLICATE})
    assert isinstance(leases.claim(workers[1]), Claim)
    for w, claim in zip(workers[1:3], [leases.claim(workers[1]), got[2]], strict=True):
        assert leases.finish(claim, TrialState.PRUNED)
        assert w
    assert leases.claim(workers[4]) == "spent"
    assert leases.count_trials() == (3, 0)


def test_a_budget_that_was_raised_counts_at_once(study, leases):
    worker = leases.register_worker(SLOT)
    study.set_user_attr("spec", {"budget": {"trials": 1}})
    leases.finish(taken(leases, worker), TrialState.COMPLETE, 0.5)
    assert leases.claim(worker) == "spent"
    study.set_user_attr("spec", {"budget": {"trials": 2}})
    assert isinstance(leases.claim(worker), Claim)


def test_the_queue_comes_first_and_in_it_what_was_cut_off(study, leases):
    study.enqueue_trial({"x": 1})
    study.enqueue_trial({"x": 2})
    cut = taken(leases)
    assert cut.number == 0
    assert leases.requeue(cut, trial_records.EndReason.INTERRUPTED) == 2
    assert taken(leases).number == 2
    assert taken(leases).number == 1


def test_without_fresh_trials_only_the_queue_is_taken(study, leases):
    worker, other = leases.register_worker(SLOT), leases.register_worker(SLOT)
    assert leases.claim(worker, fresh=False) == "spent"
    study.enqueue_trial({"x": 1})
    claim = leases.claim(worker, fresh=False)
    assert isinstance(claim, Claim)
    assert leases.claim(other, fresh=False) == "full"  # that one may yet come back
    leases.finish(claim, TrialState.COMPLETE, 1.0)
    assert leases.claim(other, fresh=False) == "spent"


def race(url: str, barrier, told, budget: int) -> None:
    leases = again(url)
    worker, mine, peak = leases.register_worker(SLOT), [], 0
    barrier.wait(60)
    while (claim := leases.claim(worker)) != "spent":
        peak = max(peak, sum(leases.count_trials()))
        if isinstance(claim, Claim):
            mine.append(claim.number)
            leases.finish(claim, TrialState.COMPLETE, float(claim.number))
    told.put((mine, peak))


def test_processes_that_race_take_every_trial_once_and_no_more_than_there_are(url):
    budget = 24
    study = new_study(url, budget)
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(3), context.Queue()
    crew = [context.Process(target=race, args=(url, barrier, told, budget)) for _ in range(3)]
    for each in crew:
        each.start()
    answers = [told.get(timeout=90) for _ in crew]
    for each in crew:
        each.join(30)
    assert sorted(n for mine, _ in answers for n in mine) == list(range(budget))
    assert max(peak for _, peak in answers) <= budget
    assert [t.value for t in study.get_trials()] == [float(n) for n in range(budget)]


# --- what a trial is about to train ------------------------------------------------------------


def test_a_configuration_is_given_to_one_trial(study, leases):
    first, second, third = (taken(leases) for _ in range(3))
    assert leases.record_config(first, {"digest": "d", "config": {"a": 1}}, "d") is None
    assert leases.record_config(second, {"digest": "d"}, "d") == first.number
    assert "digest" not in study.get_trials()[1].user_attrs
    assert leases.record_config(third, {"digest": "d"}, None) is None  # may be repeated
    assert study.get_trials()[0].user_attrs["config"] == {"a": 1}


def test_a_twin_that_was_skipped_or_handed_on_is_none(study, leases):
    first = taken(leases)
    leases.record_config(first, {"digest": "d"}, "d")
    leases.finish(first, TrialState.PRUNED, attrs={"reason": trial_records.EndReason.CONSTRAINT})
    second = taken(leases)
    assert leases.record_config(second, {"digest": "d"}, "d") is None


def test_the_successor_of_a_trial_is_not_its_twin_but_keeps_others_away(study, leases):
    study.enqueue_trial({"x": 1})
    first = taken(leases)
    leases.record_config(first, {"digest": "d"}, "d")
    successor = leases.requeue(first, trial_records.EndReason.LOST)
    other = leases.register_worker(SLOT)
    stranger = leases._run(lambda rows: rows.start_trial(rows.add_running_trial(), other))  # past the queue
    assert leases.record_config(stranger, {"digest": "d"}, "d") == successor
    mine = taken(leases)
    assert mine.number == successor
    assert leases.record_config(mine, {"digest": "d"}, "d") is None


# --- ends --------------------------------------------------------------------------------------


def test_an_end_is_written_whole(study, leases):
    worker = leases.register_worker(SLOT)
    claim = taken(leases, worker)
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
    assert leases.finish(claim, TrialState.COMPLETE, 0.75, {"epochs": 2})  # its answer got lost
    assert not leases.finish(claim, TrialState.FAIL)
    (row,) = leases.list_workers()
    assert (row.trial, row.state) == (None, "idle")


def test_values_of_epochs_are_written_over(study, leases):
    claim = taken(leases)
    leases.record_epochs(claim, {1: 0.1, 2: 0.2})
    leases.record_epochs(claim, {2: 0.3, 3: 0.4})
    assert study.get_trials()[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.4}


def test_whoever_lost_its_lease_can_say_nothing_more(study, leases):
    study.enqueue_trial({"x": 1})
    claim = taken(leases)
    stale = optuna.Trial(study, claim.trial_id)
    assert leases.requeue(claim, trial_records.EndReason.LOST) == 1
    assert not leases.finish(claim, TrialState.COMPLETE, 0.9)
    with pytest.raises(UpdateFinishedTrialError):
        stale.report(0.5, 1)
    with pytest.raises(UpdateFinishedTrialError):
        leases.set_trial_attrs(claim, {"x": 1})
    with pytest.raises(UpdateFinishedTrialError):
        leases.record_epochs(claim, {1: 0.5})
    cut, waiting = study.get_trials()
    assert (trial_records.state_of(cut), trial_records.reason_of(cut)) == (
        "skipped",
        trial_records.EndReason.LOST,
    )
    assert cut.value is None
    assert waiting.state == TrialState.WAITING


# --- trials that go on -------------------------------------------------------------------------


def test_what_goes_on_is_the_same_trial_with_its_history(study, leases):
    study.enqueue_trial({"x": 3, "y": 4}, user_attrs={"baseline": "p", "fixed_config": {"a": 1}})
    numbers = []
    for _ in range(3):
        claim = taken(leases)
        numbers.append(claim.number)
        study.get_trials()  # Optuna's cache learns of it
        trial = optuna.Trial(study, claim.trial_id)
        assert trial.suggest_int("x", 0, 9) == 3  # y is not drawn: a conditional one
        assert leases.requeue(claim, trial_records.EndReason.INTERRUPTED) == claim.number + 1
    last = study.get_trials()[-1]
    assert last.state == TrialState.WAITING
    assert last.system_attrs == {"fixed_params": {"x": 3, "y": 4}}
    assert last.user_attrs == {
        "baseline": "p",
        "fixed_config": {"a": 1},
        "requeued_from": 0,
        "attempts": numbers,
    }


def test_one_that_drew_nothing_is_closed_and_not_repeated(study, leases):
    claim = taken(leases)
    assert leases.requeue(claim, trial_records.EndReason.LOST) is None
    assert states(study) == ["skipped"]


def test_one_that_ended_is_not_queued_again(study, leases):
    claim = taken(leases)
    leases.finish(claim, TrialState.COMPLETE, 0.5)
    assert leases.requeue(claim, trial_records.EndReason.INTERRUPTED) is None
    assert states(study) == ["complete"]


def test_a_trial_that_kills_its_workers_fails_for_good(study, leases):
    study.enqueue_trial({"x": 1})
    for _ in range(MAX_LOSSES):
        assert leases.requeue(taken(leases), trial_records.EndReason.LOST) is not None
    # An interruption is nobody's fault and counts as no loss.
    assert leases.requeue(taken(leases), trial_records.EndReason.INTERRUPTED) is not None
    assert leases.requeue(taken(leases), trial_records.EndReason.LOST) is None
    assert states(study) == ["skipped"] * (MAX_LOSSES + 1) + ["failed"]
    last = study.get_trials()[-1]
    assert last.user_attrs["reason"] == "crash"
    assert last.user_attrs["message"] == "its worker died with it 4 times"
    assert leases.count_trials() == (1, 0)


# --- workers and their beats -------------------------------------------------------------------


def test_workers_are_told_apart_and_numbered(leases):
    rows = [leases.register_worker(replace(SLOT, device=f"cuda:{i}", share=0.5)) for i in range(3)]
    assert [r.ordinal for r in rows] == [0, 1, 2]
    assert len({r.id for r in rows}) == 3
    seen = leases.list_workers()
    assert [r.slot.device for r in seen] == ["cuda:0", "cuda:1", "cuda:2"]
    assert all(r.slot.share == 0.5 and r.process == current_process() for r in seen)
    assert all(r.heartbeat_age_s < 5 for r in seen)
    leases.deregister_worker(rows[1])
    assert [r.ordinal for r in leases.list_workers()] == [0, 2]
    assert leases.register_worker(SLOT).ordinal == 3


def test_a_beat_brings_the_orders_and_says_whether_the_lease_holds(study, leases):
    worker = leases.register_worker(SLOT)
    study.enqueue_trial({"x": 1})
    assert leases.heartbeat(worker).command == "run"
    claim = taken(leases, worker)
    leases.command = Command.PAUSE
    orders = leases.heartbeat(worker, claim, epoch=4)
    assert (orders.command, orders.has_lease) == ("pause", True)
    assert leases.list_workers()[0].epoch == 4
    leases.requeue(claim, trial_records.EndReason.LOST)
    assert not leases.heartbeat(worker, claim).has_lease
    assert leases.heartbeat(worker).has_lease
    leases.deregister_worker(worker)
    assert not leases.heartbeat(worker).has_lease


def test_a_worker_that_left_cannot_claim(leases):
    worker = leases.register_worker(SLOT)
    leases.deregister_worker(worker)
    with pytest.raises(WorkerExpired):
        leases.claim(worker)


def ended_process() -> ProcessId:
    process = subprocess.Popen(["true"])
    start_time = psutil.Process(process.pid).create_time()
    process.wait()
    return replace(current_process(), pid=process.pid, start_time=start_time)


def silence(leases: TrialLeases, worker, seconds: float) -> None:
    """As if it had not been heard for so long."""
    with leases._storage.engine.begin() as connection:
        connection.execute(
            text("UPDATE lesionsearch_workers SET heartbeat_at = heartbeat_at - :s WHERE id = :i"),
            {"s": seconds, "i": worker.id},
        )


def test_the_trials_of_dead_processes_are_handed_on_at_once(study, leases):
    for x in range(3):
        study.enqueue_trial({"x": x})
    dead, alive = leases.register_worker(SLOT, ended_process()), leases.register_worker(SLOT)
    elsewhere = leases.register_worker(SLOT, replace(ended_process(), host="elsewhere"))
    other_space = replace(ended_process(), pid_namespace="another container's")
    fourth = leases.register_worker(SLOT, other_space)
    claims = [taken(leases, w) for w in (dead, alive, elsewhere)]
    assert leases.reap_expired() == [(claims[0].number, 3)]
    assert states(study) == ["skipped", "running", "running", "waiting"]
    assert [r.id for r in leases.list_workers()] == [alive.id, elsewhere.id, fourth.id]
    assert leases.reap_expired() == []


def test_a_silent_worker_is_dead_to_one_who_could_have_heard_it(study, leases):
    for x in range(2):
        study.enqueue_trial({"x": x})
    silent, slow = (
        leases.register_worker(SLOT, replace(current_process(), host=f"h{i}")) for i in range(2)
    )
    claim = taken(leases, silent)
    taken(leases, slow)
    silence(leases, silent, 61)
    silence(leases, slow, 55)
    assert leases.reap_expired() == []  # nobody has listened for a minute yet
    leases._connected_since -= 61
    assert leases.reap_expired() == [(claim.number, 2)]
    cut = study.get_trials()[0]
    assert cut.user_attrs["ended_at"] < time.time() - 55  # its last beat
    # It wakes up: it has no lease, can tell nothing, and comes again under a new name.
    assert not leases.heartbeat(silent, claim).has_lease
    assert not leases.finish(claim, TrialState.COMPLETE, 1.0)
    with pytest.raises(WorkerExpired):
        leases.claim(silent)


def test_a_running_trial_that_nobody_holds_is_handed_on(study, leases):
    study.enqueue_trial({"x": 1})
    study.ask()  # by a program that knows nothing of workers
    assert leases.reap_expired() == [(0, 1)]


def die_with_a_claim(url: str, told) -> None:
    leases = again(url)
    told.put(taken(leases).number)
    time.sleep(60)


def test_a_killed_process_is_seen_to_be_gone(url, study, leases):
    study.enqueue_trial({"x": 1})
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=die_with_a_claim, args=(url, told))
    process.start()
    number = told.get(timeout=60)
    assert leases.reap_expired() == []
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert leases.reap_expired() == [(number, 1)]


def test_a_process_is_gone_only_where_that_is_known():
    me = current_process()
    assert not me.has_exited()
    assert ended_process().has_exited()
    assert replace(me, start_time=me.start_time - 100).has_exited()  # its number was given to another one
    assert not replace(ended_process(), host="elsewhere").has_exited()
    assert not replace(ended_process(), pid_namespace="elsewhere").has_exited()


def test_a_study_that_is_deleted_takes_its_workers_along(url, study, leases):
    leases.register_worker(SLOT)
    optuna.delete_study(study_name="s", storage=leases._storage)
    if "postgresql" in url:  # SQLite checks no foreign keys; a study's file goes as a whole
        with leases._storage.engine.begin() as connection:
            left = connection.execute(text("SELECT count(*) FROM lesionsearch_workers"))
            assert left.scalar() == 0


@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_grace_that_is_no_number_of_seconds_is_refused(study, monkeypatch, said):
    monkeypatch.setenv("LESIONSEARCH_GRACE", said)
    with pytest.raises(InputError, match="LESIONSEARCH_GRACE: must be seconds above 0, got"):
        TrialLeases(study)
