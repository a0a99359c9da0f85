"""A shift: the budget is exact, whoever was cut off, whatever failed, however many work."""

import itertools
import os
import sqlite3
import subprocess
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from lesionseg.errors import InputError
from search.errors import JobFailed
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.storage.worker_registry import GRACE_VARIABLE
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from search.study.opening import load_study, open_study
from search.study.samplers import SAMPLERS
from search.study.suggest import suggest
from search.trial_process.slot import Slot, WorkerResult
from search.workers.launchers.local import worker_command
from search.workers.loop import EXHAUSTED, WorkerOptions, serve
from search.workers.worker import HISTORY, KEEP_BEST, WEIGHTS, load_claimed_trial
from tests.conftest import ROOT
from tests.postgres import private_postgres  # noqa: F401
from tests.search import failing_training
from tests.search.failing_training import FAILURE_WIDTHS
from tests.search.helpers import (
    SLOT,
    RecordingListener,
    in_memory,
    open_tiny,
    queue,
    search,
    tiny_spec,
    wait_until,
)
from tests.search.study.test_samplers import SPACE
from tests.search.workers.test_worker import GRACE, LONG, Calling, claimed_by, dead

#: Six configurations in all: 2 depths x 3 widths.
SIX = {
    "search.model": {"unet": {"width": [4, 6], "depth": [1, 2]}},
    "search.optimizer": {"adam": {"lr": 0.01}},
    "budget.epochs": 1,
}


#: Trainings that need no time, where how they train is no matter.
QUICK = WorkerOptions(program=failing_training.__name__)


def states(opened) -> Counter:
    return Counter(trial_records.state_of(t) for t in opened.study.trials)


# --- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "grid"])
def test_a_study_runs_its_budget_exactly(tiny_data, tmp_path, sampler):
    opened = open_tiny(
        tiny_data, tmp_path / "s", {"sampler": {"name": sampler, "startup": 2}, "budget.trials": 4}
    )
    heard = RecordingListener()
    served = search(opened, heard, terms=QUICK)
    assert (served.trials, served.why) == (4, "done")
    assert states(opened) == {"complete": 4}
    assert heard.started == [0, 1, 2, 3]
    assert heard.epochs == [(n, e) for n in range(4) for e in (1, 2)]
    best = [b for _, _, b in heard.ended]
    values = [t.value for t in opened.study.trials]
    assert best == [values.index(max(values[: i + 1])) for i in range(4)]
    assert TrialLeases(opened.study).list_workers() == []


def test_a_study_whose_budget_is_spent_runs_nothing(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened)
    heard = RecordingListener()
    served = search(opened, heard)
    assert heard.started == []
    assert (served.trials, served.why) == (0, "done")


def test_more_trials_go_on_where_the_others_ended(tiny_data, tmp_path):
    for budget in (2, 3, 5):
        opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": budget})
        search(opened, terms=QUICK)
        assert states(opened) == {"complete": budget}
    digests = [t.user_attrs["digest"] for t in opened.study.trials]
    assert len(set(digests)) == 5


def test_a_study_goes_on_after_an_interruption_to_the_exact_budget(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 3})

    class Once(RecordingListener):
        def epoch_ended(self, number, record):
            if number == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(opened, Once())
    assert states(opened) == {"complete": 1, "skipped": 1, "waiting": 1}
    again = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 3})
    search(again)
    assert states(again) == {"complete": 3, "skipped": 1}
    # The one that was cut off was taken up again first, with its parameters.
    cut, retry = again.study.trials[1:3]
    assert retry.params == cut.params
    assert retry.user_attrs[trial_records.TrialAttr.REQUEUED_FROM] == 1


def test_failing_trials_are_recorded_cost_budget_and_are_not_fatal(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 4, "budget.epochs": 1})

    class Breaking(RecordingListener):
        """Every second trial loses the folder that it writes to."""

        def trial_started(self, number, config):
            super().trial_started(number, config)
            if number % 2:
                opened.artifact_store.local_path(number, WEIGHTS).with_name(
                    f".{WEIGHTS}.partial"
                ).mkdir()

    search(opened, Breaking())
    assert [trial_records.state_of(t) for t in opened.study.trials] == ["complete", "failed"] * 2
    assert {t.user_attrs["reason"] for t in opened.study.trials[1::2]} == {"crash"}


def test_whoever_is_to_do_a_share_leaves_after_it(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 1})
    served = search(opened, terms=replace(QUICK, max_trials=2))
    assert (served.trials, served.why) == (2, "enough")
    assert states(opened) == {"complete": 2}
    served = search(opened, terms=replace(QUICK, max_trials=2))
    assert (served.trials, served.why) == (1, "done")


def test_whoever_waits_for_ever_leaves_when_asked_and_does_what_is_queued_meanwhile(
    tiny_data, tmp_path
):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1, "budget.epochs": 1})
    stopping = threading.Event()

    class More(RecordingListener):
        def trial_ended(self, trial, best):
            super().trial_ended(trial, best)
            if trial.number == 1:
                stopping.set()
                return
            spec = opened.study.user_attrs["spec"]
            spec["budget"]["trials"] = 2
            opened.study.set_user_attr("spec", spec)  # by whoever gives the study more

    served = search(opened, More(), stopping=stopping, terms=replace(QUICK, forever=True))
    assert (served.trials, served.why) == (2, "asked")


# --- small spaces ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_is_tried_whole_and_once_and_then_it_ends(tiny_data, tmp_path, sampler):
    changes = SIX | {"sampler": {"name": sampler, "startup": 2}, "budget.trials": 100}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    heard = RecordingListener()
    assert search(opened, heard, terms=QUICK).why == "exhausted"
    assert len(heard.started) == 6
    done = [t.params for t in opened.study.trials if trial_records.state_of(t) == "complete"]
    found = {(p["model.unet.width"], p["model.unet.depth"]) for p in done}
    assert found == set(itertools.product((4, 5, 6), (1, 2)))
    assert states(opened)["complete"] == 6
    # A grid proposes nothing twice.
    assert sampler != "grid" or states(opened) == {"complete": 6}


def test_a_space_of_one_configuration_is_one_trial(tiny_data, tmp_path):
    changes = SIX | {"search.model": {"unet": {"width": 4, "depth": 1}}, "budget.trials": 5}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, terms=QUICK).why == "exhausted"
    assert states(opened) == {"complete": 1}


def test_a_grid_goes_on_after_a_cut_and_still_lists_everything_once(tiny_data, tmp_path):
    changes = SIX | {"sampler.name": "grid", "budget.trials": 100}

    class Cutting(RecordingListener):
        def epoch_ended(self, number, record):
            if number in (0, 3):
                raise KeyboardInterrupt

    for _ in range(2):
        opened = open_tiny(tiny_data, tmp_path / "s", changes)
        with pytest.raises(KeyboardInterrupt):
            search(opened, Cutting(), terms=QUICK)
    # One more is lost without a trace of what it would have been.
    claimed_by(opened, dead())
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, terms=QUICK).why == "exhausted"
    done = [t for t in opened.study.trials if trial_records.state_of(t) == "complete"]
    assert len(done) == len({t.user_attrs["digest"] for t in done}) == 6


def test_a_constraint_that_forbids_part_of_a_space_costs_no_budget(tiny_data, tmp_path):
    changes = SIX | {"constraints": {"max_params_m": 0.004}, "budget.trials": 100}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened).why == "exhausted"
    known = opened.study.trials
    trained = [t for t in known if trial_records.state_of(t) == "complete"]
    refused = [t for t in known if trial_records.reason_of(t) == trial_records.EndReason.CONSTRAINT]
    assert trained
    assert refused
    assert all(t.user_attrs["params"] <= 4000 for t in trained)
    assert all(t.user_attrs["params"] > 4000 for t in refused)
    assert trial_records.count_finished(known) == len(trained)
    assert len({t.user_attrs["digest"] for t in trained + refused}) == 6


def test_a_constraint_that_forbids_everything_ends_a_search_that_could_go_on_for_ever(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("search.workers.loop.EXHAUSTED", 12)
    assert EXHAUSTED > 12
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.0001}})
    assert search(opened).why == "exhausted"
    assert states(opened) == {"skipped": 12}


def test_tried_covers_a_finite_space_exactly_when_nothing_is_left():
    """The search's end rests on this count; held against a walk through the whole space."""
    study = in_memory(SAMPLERS["random"](0, 0))
    seen = set()
    while len(seen) < SPACE.size():
        trial = study.ask()
        digest = suggest(trial, SPACE).digest()
        reason = trial_records.EndReason.DUPLICATE if digest in seen else None
        if reason:
            trial.set_user_attr("reason", reason)
        else:
            trial.set_user_attr("digest", digest)
        seen.add(digest)
        study.tell(trial, state=TrialState.FAIL)
        assert len(trial_records.tried_digests(study.trials)) == len(seen)


def test_what_was_handed_on_is_the_same_for_every_sampler(tiny_data, tmp_path):
    for sampler in SAMPLERS:
        opened = open_tiny(tiny_data, tmp_path / sampler, SIX | {"sampler.name": sampler})
        leases = TrialLeases(opened.study)
        row = leases.register_worker(SLOT)
        claim = leases.claim(row)
        config = suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
        leases.requeue(claim, trial_records.EndReason.LOST)
        successor = load_claimed_trial(opened.study, leases.claim(row))
        assert suggest(successor, opened.spec.space) == config


# --- time --------------------------------------------------------------------------------------


def test_hours_end_a_study_after_its_first_complete_trial(tiny_data, tmp_path):
    changes = {"budget.hours": 1e-9, "budget.trials": 5}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, terms=QUICK).why == "time"
    assert len(opened.study.trials) <= 1


def test_hours_cut_the_trial_at_work_when_there_is_a_result(tiny_data, tmp_path):
    changes = {"budget.hours": 1 / 3600, "budget.trials": 1000, "budget.epochs": 10}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened).why == "time"
    counted = states(opened)
    assert counted["complete"] >= 1
    assert counted["complete"] + counted["pruned"] == sum(counted.values())
    assert counted["pruned"] <= 1


def test_hours_of_earlier_sessions_count(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened, terms=QUICK)
    spent = trial_records.hours_spent(opened.study.trials)
    changes = {"budget.trials": 9, "budget.hours": spent / 2}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, terms=QUICK).why == "time"
    assert len(opened.study.trials) == 1


def test_gpu_hours_are_no_matter_of_a_cpu(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.gpu_hours": 1e-9, "budget.epochs": 1})
    assert search(opened, terms=QUICK).why == "done"


def test_a_night_between_a_kill_and_the_next_session_is_not_training_time(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.hours": 1})
    claim = claimed_by(opened, dead())
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    # As if it had been begun in 2020 by a process that died a minute later.
    opened.study._storage.remove_session()
    with closing(sqlite3.connect(tmp_path / "s" / "study.db")) as database, database:
        database.execute("UPDATE trials SET datetime_start = '2020-01-01 00:00:00.000000'")
        database.execute(
            "UPDATE trial_user_attributes SET value_json = '1577836800' WHERE key = 'began'"
        )
        database.execute("UPDATE lesionsearch_workers SET heartbeat_at = 1577836860")
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.hours": 1})
    assert search(opened, terms=QUICK).why == "done"
    assert states(opened) == {"complete": 2, "skipped": 1}
    assert trial_records.hours_spent(opened.study.trials[:1]) == pytest.approx(1 / 60)


# --- commands ----------------------------------------------------------------------------------


def in_background(opened, listener, **terms):
    """Works in a thread; what it returned, once that has ended."""
    returned = []
    thread = threading.Thread(
        target=lambda: returned.append(search(opened, listener, **terms)), daemon=True
    )
    thread.start()

    def end():
        thread.join(250)
        assert not thread.is_alive()
        return returned[0]

    return end


def test_a_study_is_paused_resumed_and_stopped_from_outside(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv(GRACE_VARIABLE, str(GRACE))
    opened = open_tiny(tiny_data, tmp_path / "s", LONG | {"budget.trials": 50})
    queue(opened, width=FAILURE_WIDTHS["waits for suspend"])
    outside = load_study(tmp_path / "s")
    leases = TrialLeases(outside)

    def command(word):
        TrialLeases(opened.study).command = word

    class Commanding(Calling):
        def trial_ended(self, trial, best):
            super().trial_ended(trial, best)
            if trial.number == 1:
                command("stop")

    heard = Commanding(0, 2, lambda: command("pause"))
    end = in_background(opened, heard, terms=QUICK)
    assert wait_until(lambda: len(outside.trials) == 2, 200)
    assert wait_until(lambda: [w.state for w in leases.list_workers()] == ["idle"], 200)
    assert [trial_records.state_of(t) for t in outside.trials] == ["skipped", "waiting"]
    leases.command = "run"
    served = end()
    assert served.why == "asked"
    done = outside.trials[1]
    assert (trial_records.state_of(done), done.user_attrs["resumed_at"]) == ("complete", 2)
    assert list(done.intermediate_values) == [1, 2, 3, 4, 5]
    assert trial_records.count_by_state(outside.trials)["running"] == 0
    assert leases.list_workers() == []


def test_a_study_that_was_stopped_is_not_begun_upon(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    TrialLeases(opened.study).command = "stop"
    assert search(opened).why == "asked"
    assert opened.study.trials == []


def test_whoever_is_asked_to_leave_puts_the_trial_down_and_leaves(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", LONG)
    queue(opened, width=FAILURE_WIDTHS["waits for suspend"])
    stopping = threading.Event()
    served = search(
        opened,
        Calling(0, 2, stopping.set),
        stopping=stopping,
        terms=QUICK,
    )
    assert (served.trials, served.why) == (0, "asked")
    assert [trial_records.state_of(t) for t in opened.study.trials] == ["skipped", "waiting"]
    assert TrialLeases(opened.study).list_workers() == []


# --- several at once ---------------------------------------------------------------------------


#: Eight configurations in all, of which seven are asked for.
EIGHT = {
    "search.model": {"unet": {"width": [4, 7], "depth": [1, 2]}},
    "search.optimizer": {"adam": {"lr": 0.01}},
    "budget": {"trials": 7, "epochs": 1},
}


def check_shared(opened, workers: int) -> None:
    """The budget is exact, no twin was trained, and the weights of the best are there."""
    assert states(opened)["complete"] == trial_records.count_finished(opened.study.trials) == 7
    done = [t for t in opened.study.trials if trial_records.state_of(t) == "complete"]
    assert len({t.user_attrs["digest"] for t in done}) == 7
    assert len({t.user_attrs["owner"]["worker"] for t in done}) == workers
    kept = {t.number for t in done if WEIGHTS in opened.artifact_store.list_files(t.number)}
    assert kept == {t.number for t in trial_records.rank_trials(done)[:KEEP_BEST]}
    assert all(HISTORY in opened.artifact_store.list_files(t.number) for t in done)
    assert TrialLeases(opened.study).list_workers() == []


def test_two_workers_share_a_study_to_the_exact_budget_and_train_no_twin(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", EIGHT)
    both = threading.Barrier(2)

    class Together(RecordingListener):
        """The first trials of both begin at once."""

        def trial_started(self, number, config):
            super().trial_started(number, config)
            if len(self.started) == 1:
                both.wait(200)

    ends = [in_background(open_study(tmp_path / "s"), Together(), terms=QUICK) for _ in range(2)]
    served = [end() for end in ends]
    assert [each.why for each in served] == ["done", "done"]
    assert sum(each.trials for each in served) == len(opened.study.trials)
    check_shared(opened, workers=2)


@pytest.mark.slow
def test_a_worker_of_the_command_line_shares_a_study_with_this_process(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", EIGHT)
    other = subprocess.Popen(
        worker_command(StudyLocation("s", tmp_path / "s"), SLOT),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        leases = TrialLeases(opened.study)
        assert wait_until(lambda: any(w.trial is not None for w in leases.list_workers()), 250)
        assert search(opened).why == "done"
        said, _ = other.communicate(timeout=250)
    finally:
        other.kill()
        other.communicate()
    assert other.returncode == 0, said
    check_shared(opened, workers=2)


def test_whoever_finds_the_rest_at_work_waits_for_it(tiny_data, tmp_path):
    """The last trial is in the hands of another worker, which dies."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.epochs": 1})
    claim = claimed_by(opened, dead())
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    alive = claimed_by(opened, replace(dead(), host="elsewhere"))
    leases = TrialLeases(opened.study)
    heard = RecordingListener()
    end = in_background(opened, heard)
    # The first is reaped at once and trained again; then the other's is waited for.
    assert wait_until(lambda: heard.ended, 200)
    assert states(opened) == {"skipped": 1, "running": 1, "complete": 1}
    assert leases.finish(alive, TrialState.COMPLETE, 0.5)
    assert end().why == "done"
    assert trial_records.count_finished(opened.study.trials) == 2


# --- what goes wrong ---------------------------------------------------------------------------


def test_who_comes_while_the_database_restarts_waits_at_the_door(
    tiny_data, tmp_path, request, monkeypatch
):
    server = request.getfixturevalue("private_postgres")
    name = f"door_{os.urandom(4).hex()}"
    url = server.create(name)
    spec = tiny_spec({"budget.trials": 1})
    create_or_resume(spec, tiny_data, tmp_path / "s", url)
    join, told = StudyLocation("s", tmp_path / "s", url), []

    def on_event(text: str) -> None:
        told.append(text)
        if text.endswith("waiting"):
            server.start()

    server.stop("immediate")
    served = serve(join, SLOT, threading.Event(), QUICK, on_event=on_event)
    assert (served.trials, served.why) == (1, "done")
    assert [text.split(":")[0].rstrip("0123456789. s") for text in told[:2]] == [
        "storage lost",
        "storage back after",
    ]
    # It does not wait for ever, leaves when it is asked to, and says why in the database's words.
    monkeypatch.setattr("search.workers.loop.AT_THE_DOOR", 0.3)
    server.stop("immediate")
    try:
        with pytest.raises(InputError, match=r"cannot be used: .*refused"):
            serve(join, SLOT, threading.Event(), QUICK)
        asked = threading.Event()
        asked.set()
        assert serve(join, SLOT, asked, QUICK) == WorkerResult(0, "asked")
    finally:
        server.start()
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


def test_joining_looks_at_the_slot_first(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1, "budget.epochs": 1})
    join = StudyLocation("s", tmp_path / "s")
    with pytest.raises(Exception, match="device: 'cuda:63' is not available"):
        serve(join, Slot("cuda:63", 1), threading.Event())
    served = serve(join, Slot("cpu", 1), threading.Event())
    assert (served.trials, served.why) == (1, "done")


def test_a_disk_that_is_full_is_told_in_one_line_and_nothing_is_lost(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")

    class Full(RecordingListener):
        def trial_started(self, number, config):
            raise OSError(28, "No space left on device")

    with pytest.raises(JobFailed, match="No space left on device; make room and start again"):
        search(opened, Full(), terms=QUICK)
    assert search(opened).why == "done"
    assert states(opened) == {"complete": 3, "skipped": 1}
