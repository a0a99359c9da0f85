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
from search.storage.lease_transaction import MAY_BE_LOST
from search.storage.leases import Claim, TrialLeases, WorkerExpired
from search.storage.process_id import ProcessId, this_process
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
def ledger(study):
    return TrialLeases(study, grace=60)


def states(study) -> list[str]:
    return [trial_records.state_of(t) for t in study.get_trials()]


def taken(ledger: TrialLeases, worker=None) -> Claim:
    claim = ledger.claim(worker or ledger.join(SLOT))
    assert isinstance(claim, Claim)
    return claim


# --- founding ----------------------------------------------------------------------------------


def test_a_study_is_founded_once_with_its_queue(url):
    storage = open_storage(storage_url(url, None))
    study = optuna.create_study(study_name="new", storage=storage)
    first = TrialLeases(study).found(
        {"spec": {"a": 1}, "uuid": "x"}, [({"p": 1}, {"baseline": "a"})]
    )
    second = TrialLeases(study).found({"spec": {"a": 2}, "uuid": "y"}, [({"p": 2}, {})])
    assert (first, second) == (True, False)
    assert study.user_attrs == {"spec": {"a": 1}, "uuid": "x"}
    (waiting,) = study.get_trials()
    assert waiting.state == TrialState.WAITING
    assert waiting.system_attrs == {"fixed_params": {"p": 1}}
    assert waiting.user_attrs == {"baseline": "a"}


# --- claims ------------------------------------------------------------------------------------


def test_a_claim_is_a_running_trial_with_its_owner(study, ledger):
    worker = ledger.join(SLOT)
    claim = taken(ledger, worker)
    (trial,) = study.get_trials()
    assert (trial.number, trial._trial_id) == (claim.number, claim.trial_id)
    assert trial.state == TrialState.RUNNING
    assert trial.datetime_start is not None
    owner = trial.user_attrs["owner"]
    assert (owner["worker"], owner["pid"], owner["device"]) == (worker.id, os.getpid(), "cpu")
    assert trial.user_attrs["began"] == pytest.approx(time.time(), abs=5)
    (row,) = ledger.workers()
    assert (row.trial, row.state) == (0, "training")


def test_a_claim_whose_answer_was_lost_is_answered_again(study, ledger):
    worker = ledger.join(SLOT)
    assert ledger.claim(worker) == ledger.claim(worker)
    assert len(study.get_trials()) == 1


def test_no_moment_sees_more_trials_than_the_budget(study, ledger):
    workers = [ledger.join(SLOT) for _ in range(5)]
    got = [ledger.claim(w) for w in workers]
    assert [isinstance(g, Claim) for g in got] == [True, True, True, False, False]
    assert got[3:] == ["full", "full"]
    ledger.finish(got[0], TrialState.COMPLETE, 0.5)
    assert ledger.claim(workers[0]) == "full"  # one done and two at work are three
    # One that was skipped leaves room for another.
    ledger.finish(got[1], TrialState.FAIL, attrs={"reason": trial_records.DUPLICATE})
    assert isinstance(ledger.claim(workers[1]), Claim)
    for w, claim in zip(workers[1:3], [ledger.claim(workers[1]), got[2]], strict=True):
        assert ledger.finish(claim, TrialState.PRUNED)
        assert w
    assert ledger.claim(workers[4]) == "spent"
    assert ledger.counted() == (3, 0)


def test_a_budget_that_was_raised_counts_at_once(study, ledger):
    worker = ledger.join(SLOT)
    study.set_user_attr("spec", {"budget": {"trials": 1}})
    ledger.finish(taken(ledger, worker), TrialState.COMPLETE, 0.5)
    assert ledger.claim(worker) == "spent"
    study.set_user_attr("spec", {"budget": {"trials": 2}})
    assert isinstance(ledger.claim(worker), Claim)


def test_the_queue_comes_first_and_in_it_what_was_cut_off(study, ledger):
    study.enqueue_trial({"x": 1})
    study.enqueue_trial({"x": 2})
    cut = taken(ledger)
    assert cut.number == 0
    assert ledger.requeue(cut, trial_records.INTERRUPTED) == 2
    assert taken(ledger).number == 2
    assert taken(ledger).number == 1


def test_without_fresh_trials_only_the_queue_is_taken(study, ledger):
    worker, other = ledger.join(SLOT), ledger.join(SLOT)
    assert ledger.claim(worker, fresh=False) == "spent"
    study.enqueue_trial({"x": 1})
    claim = ledger.claim(worker, fresh=False)
    assert isinstance(claim, Claim)
    assert ledger.claim(other, fresh=False) == "full"  # that one may yet come back
    ledger.finish(claim, TrialState.COMPLETE, 1.0)
    assert ledger.claim(other, fresh=False) == "spent"


def race(url: str, barrier, told, budget: int) -> None:
    ledger = again(url)
    worker, mine, peak = ledger.join(SLOT), [], 0
    barrier.wait(60)
    while (claim := ledger.claim(worker)) != "spent":
        peak = max(peak, sum(ledger.counted()))
        if isinstance(claim, Claim):
            mine.append(claim.number)
            ledger.finish(claim, TrialState.COMPLETE, float(claim.number))
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


def test_a_configuration_is_given_to_one_trial(study, ledger):
    first, second, third = (taken(ledger) for _ in range(3))
    assert ledger.configure(first, {"digest": "d", "config": {"a": 1}}, "d") is None
    assert ledger.configure(second, {"digest": "d"}, "d") == first.number
    assert "digest" not in study.get_trials()[1].user_attrs
    assert ledger.configure(third, {"digest": "d"}, None) is None  # may be repeated
    assert study.get_trials()[0].user_attrs["config"] == {"a": 1}


def test_a_twin_that_was_skipped_or_handed_on_is_none(study, ledger):
    first = taken(ledger)
    ledger.configure(first, {"digest": "d"}, "d")
    ledger.finish(first, TrialState.PRUNED, attrs={"reason": trial_records.CONSTRAINT})
    second = taken(ledger)
    assert ledger.configure(second, {"digest": "d"}, "d") is None


def test_the_successor_of_a_trial_is_not_its_twin_but_keeps_others_away(study, ledger):
    study.enqueue_trial({"x": 1})
    first = taken(ledger)
    ledger.configure(first, {"digest": "d"}, "d")
    successor = ledger.requeue(first, trial_records.LOST)
    other = ledger.join(SLOT)
    stranger = ledger._whole(lambda books: books.start(books.new(), other))  # past the queue
    assert ledger.configure(stranger, {"digest": "d"}, "d") == successor
    mine = taken(ledger)
    assert mine.number == successor
    assert ledger.configure(mine, {"digest": "d"}, "d") is None


# --- ends --------------------------------------------------------------------------------------


def test_an_end_is_written_whole(study, ledger):
    worker = ledger.join(SLOT)
    claim = taken(ledger, worker)
    ledger.report(claim, {1: 0.25, 2: math.nan})
    ledger.note(claim, {"params": 7})
    assert ledger.finish(claim, TrialState.COMPLETE, 0.75, {"epochs": 2})
    (trial,) = study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.75)
    assert trial.intermediate_values[1] == 0.25
    assert math.isnan(trial.intermediate_values[2])
    assert trial.user_attrs["params"] == 7
    assert trial.user_attrs["epochs"] == 2
    assert trial.user_attrs["ended"] >= trial.user_attrs["began"]
    assert trial.datetime_complete >= trial.datetime_start
    assert ledger.finish(claim, TrialState.COMPLETE, 0.75, {"epochs": 2})  # its answer got lost
    assert not ledger.finish(claim, TrialState.FAIL)
    (row,) = ledger.workers()
    assert (row.trial, row.state) == (None, "idle")


def test_values_of_epochs_are_written_over(study, ledger):
    claim = taken(ledger)
    ledger.report(claim, {1: 0.1, 2: 0.2})
    ledger.report(claim, {2: 0.3, 3: 0.4})
    assert study.get_trials()[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.4}


def test_whoever_lost_its_lease_can_say_nothing_more(study, ledger):
    study.enqueue_trial({"x": 1})
    claim = taken(ledger)
    stale = optuna.Trial(study, claim.trial_id)
    assert ledger.requeue(claim, trial_records.LOST) == 1
    assert not ledger.finish(claim, TrialState.COMPLETE, 0.9)
    with pytest.raises(UpdateFinishedTrialError):
        stale.report(0.5, 1)
    with pytest.raises(UpdateFinishedTrialError):
        ledger.note(claim, {"x": 1})
    with pytest.raises(UpdateFinishedTrialError):
        ledger.report(claim, {1: 0.5})
    cut, waiting = study.get_trials()
    assert (trial_records.state_of(cut), trial_records.reason_of(cut)) == (
        "skipped",
        trial_records.LOST,
    )
    assert cut.value is None
    assert waiting.state == TrialState.WAITING


# --- trials that go on -------------------------------------------------------------------------


def test_what_goes_on_is_the_same_trial_with_its_history(study, ledger):
    study.enqueue_trial({"x": 3, "y": 4}, user_attrs={"baseline": "p", "given": {"a": 1}})
    numbers = []
    for _ in range(3):
        claim = taken(ledger)
        numbers.append(claim.number)
        study.get_trials()  # Optuna's cache learns of it
        trial = optuna.Trial(study, claim.trial_id)
        assert trial.suggest_int("x", 0, 9) == 3  # y is not drawn: a conditional one
        assert ledger.requeue(claim, trial_records.INTERRUPTED) == claim.number + 1
    last = study.get_trials()[-1]
    assert last.state == TrialState.WAITING
    assert last.system_attrs == {"fixed_params": {"x": 3, "y": 4}}
    assert last.user_attrs == {
        "baseline": "p",
        "given": {"a": 1},
        "retry_of": 0,
        "attempts": numbers,
    }


def test_one_that_drew_nothing_is_closed_and_not_repeated(study, ledger):
    claim = taken(ledger)
    assert ledger.requeue(claim, trial_records.LOST) is None
    assert states(study) == ["skipped"]


def test_one_that_ended_is_not_queued_again(study, ledger):
    claim = taken(ledger)
    ledger.finish(claim, TrialState.COMPLETE, 0.5)
    assert ledger.requeue(claim, trial_records.INTERRUPTED) is None
    assert states(study) == ["complete"]


def test_a_trial_that_kills_its_workers_fails_for_good(study, ledger):
    study.enqueue_trial({"x": 1})
    for _ in range(MAY_BE_LOST):
        assert ledger.requeue(taken(ledger), trial_records.LOST) is not None
    # An interruption is nobody's fault and counts as no loss.
    assert ledger.requeue(taken(ledger), trial_records.INTERRUPTED) is not None
    assert ledger.requeue(taken(ledger), trial_records.LOST) is None
    assert states(study) == ["skipped"] * (MAY_BE_LOST + 1) + ["failed"]
    last = study.get_trials()[-1]
    assert last.user_attrs["reason"] == "crash"
    assert last.user_attrs["message"] == "its worker died with it 4 times"
    assert ledger.counted() == (1, 0)


# --- workers and their beats -------------------------------------------------------------------


def test_workers_are_told_apart_and_numbered(ledger):
    rows = [ledger.join(replace(SLOT, device=f"cuda:{i}", share=0.5)) for i in range(3)]
    assert [r.ordinal for r in rows] == [0, 1, 2]
    assert len({r.id for r in rows}) == 3
    seen = ledger.workers()
    assert [r.slot.device for r in seen] == ["cuda:0", "cuda:1", "cuda:2"]
    assert all(r.slot.share == 0.5 and r.who == this_process() for r in seen)
    assert all(r.age < 5 for r in seen)
    ledger.leave(rows[1])
    assert [r.ordinal for r in ledger.workers()] == [0, 2]
    assert ledger.join(SLOT).ordinal == 3


def test_a_beat_brings_the_orders_and_says_whether_the_lease_holds(study, ledger):
    worker = ledger.join(SLOT)
    study.enqueue_trial({"x": 1})
    assert ledger.beat(worker).command == "run"
    claim = taken(ledger, worker)
    ledger.command = "pause"
    orders = ledger.beat(worker, claim, epoch=4)
    assert (orders.command, orders.lease) == ("pause", True)
    assert ledger.workers()[0].epoch == 4
    ledger.requeue(claim, trial_records.LOST)
    assert not ledger.beat(worker, claim).lease
    assert ledger.beat(worker).lease
    ledger.leave(worker)
    assert not ledger.beat(worker).lease


def test_a_worker_that_left_cannot_claim(ledger):
    worker = ledger.join(SLOT)
    ledger.leave(worker)
    with pytest.raises(WorkerExpired):
        ledger.claim(worker)


def ended_process() -> ProcessId:
    process = subprocess.Popen(["true"])
    since = psutil.Process(process.pid).create_time()
    process.wait()
    return replace(this_process(), pid=process.pid, since=since)


def silence(ledger: TrialLeases, worker, seconds: float) -> None:
    """As if it had not been heard for so long."""
    with ledger._storage.engine.begin() as connection:
        connection.execute(
            text("UPDATE lesionsearch_workers SET beat = beat - :s WHERE id = :i"),
            {"s": seconds, "i": worker.id},
        )


def test_the_trials_of_dead_processes_are_handed_on_at_once(study, ledger):
    for x in range(3):
        study.enqueue_trial({"x": x})
    dead, alive = ledger.join(SLOT, ended_process()), ledger.join(SLOT)
    elsewhere = ledger.join(SLOT, replace(ended_process(), host="elsewhere"))
    other_space = replace(ended_process(), space="another container's")
    fourth = ledger.join(SLOT, other_space)
    claims = [taken(ledger, w) for w in (dead, alive, elsewhere)]
    assert ledger.reap() == [(claims[0].number, 3)]
    assert states(study) == ["skipped", "running", "running", "waiting"]
    assert [r.id for r in ledger.workers()] == [alive.id, elsewhere.id, fourth.id]
    assert ledger.reap() == []


def test_a_silent_worker_is_dead_to_one_who_could_have_heard_it(study, ledger):
    for x in range(2):
        study.enqueue_trial({"x": x})
    silent, slow = (ledger.join(SLOT, replace(this_process(), host=f"h{i}")) for i in range(2))
    claim = taken(ledger, silent)
    taken(ledger, slow)
    silence(ledger, silent, 61)
    silence(ledger, slow, 55)
    assert ledger.reap() == []  # nobody has listened for a minute yet
    ledger._troubled -= 61
    assert ledger.reap() == [(claim.number, 2)]
    cut = study.get_trials()[0]
    assert cut.user_attrs["ended"] < time.time() - 55  # its last beat
    # It wakes up: it has no lease, can tell nothing, and comes again under a new name.
    assert not ledger.beat(silent, claim).lease
    assert not ledger.finish(claim, TrialState.COMPLETE, 1.0)
    with pytest.raises(WorkerExpired):
        ledger.claim(silent)


def test_a_running_trial_that_nobody_holds_is_handed_on(study, ledger):
    study.enqueue_trial({"x": 1})
    study.ask()  # by a program that knows nothing of workers
    assert ledger.reap() == [(0, 1)]


def die_with_a_claim(url: str, told) -> None:
    ledger = again(url)
    told.put(taken(ledger).number)
    time.sleep(60)


def test_a_killed_process_is_seen_to_be_gone(url, study, ledger):
    study.enqueue_trial({"x": 1})
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=die_with_a_claim, args=(url, told))
    process.start()
    number = told.get(timeout=60)
    assert ledger.reap() == []
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert ledger.reap() == [(number, 1)]


def test_a_process_is_gone_only_where_that_is_known():
    me = this_process()
    assert not me.is_gone()
    assert ended_process().is_gone()
    assert replace(me, since=me.since - 100).is_gone()  # its number was given to another one
    assert not replace(ended_process(), host="elsewhere").is_gone()
    assert not replace(ended_process(), space="elsewhere").is_gone()


def test_a_study_that_is_deleted_takes_its_workers_along(url, study, ledger):
    ledger.join(SLOT)
    optuna.delete_study(study_name="s", storage=ledger._storage)
    if "postgresql" in url:  # SQLite checks no foreign keys; a study's file goes as a whole
        with ledger._storage.engine.begin() as connection:
            left = connection.execute(text("SELECT count(*) FROM lesionsearch_workers"))
            assert left.scalar() == 0


@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_grace_that_is_no_number_of_seconds_is_refused(study, monkeypatch, said):
    monkeypatch.setenv("LESIONSEARCH_GRACE", said)
    with pytest.raises(InputError, match="LESIONSEARCH_GRACE: must be seconds above 0, got"):
        TrialLeases(study)
