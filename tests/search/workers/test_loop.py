"""The loop of a worker: the budget is exact despite interruptions, failures and other workers."""

import itertools
import os
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState

from lesionseg.data.cache import Cache, build_cache
from lesionseg.errors import InputError
from search.errors import JobFailed, WorkerBlocked
from search.storage import training_time, trial_records
from search.storage.lease_types import GRACE_VARIABLE
from search.storage.leases import TrialLeases
from search.storage.retention import HISTORY, KEEP_BEST, WEIGHTS
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from search.study.opening import load_study, open_study
from search.study.samplers import SAMPLERS
from search.study.suggest import suggest
from search.trial_process.slot import Slot
from search.workers.failure_streak import CACHE_DAMAGED
from search.workers.loop import SKIPPED_BEFORE_EXHAUSTED, WorkerOptions, join_and_run_trials
from search.workers.pool import StudyMonitor
from search.workers.worker import load_claimed_trial
from search.workers.worker_result import WorkerResult
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
from tests.search.workers.test_worker import GRACE_S, LONG, CallingListener, claim_as, dead_process

#: Six configurations: 2 depths x 3 widths.
SIX = {
    "search.model": {"unet": {"width": [4, 6], "depth": [1, 2]}},
    "search.optimizer": {"adam": {"lr": 0.01}},
    "budget.epochs": 1,
}


#: Trainings that take no time.
QUICK = WorkerOptions(program=failing_training.__name__)


def states(opened) -> Counter:
    return Counter(trial_records.state_of(t) for t in opened.study.trials)


# --- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "grid"])
def test_a_study_runs_its_budget_exactly(tiny_data, tmp_path, sampler):
    opened = open_tiny(
        tiny_data, tmp_path / "s", {"sampler": {"name": sampler, "startup": 2}, "budget.trials": 4}
    )
    listener = RecordingListener()
    result = search(opened, listener, options=QUICK)
    assert (result.trials, result.reason) == (4, "done")
    assert states(opened) == {"complete": 4}
    assert listener.started == [0, 1, 2, 3]
    assert listener.epochs == [(n, e) for n in range(4) for e in (1, 2)]
    best = [b for _, _, b in listener.ended]
    values = [t.value for t in opened.study.trials]
    assert best == [values.index(max(values[: i + 1])) for i in range(4)]
    assert TrialLeases(opened.study).list_workers() == []


def test_raised_budget_adds_trials_without_duplicates(tiny_data, tmp_path):
    for budget in (2, 3, 5):
        opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": budget})
        search(opened, options=QUICK)
        assert states(opened) == {"complete": budget}
    digests = [t.user_attrs["digest"] for t in opened.study.trials]
    assert len(set(digests)) == 5


def test_interrupted_study_resumes_to_the_exact_budget(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 3})

    class Once(RecordingListener):
        def epoch_ended(self, number, record):
            if number == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(opened, Once())
    assert states(opened) == {"complete": 1, "closed": 1, "waiting": 1}
    again = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 3})
    search(again)
    assert states(again) == {"complete": 3, "closed": 1}
    # The requeued trial runs first, with its parameters.
    cut, retry = again.study.trials[1:3]
    assert retry.params == cut.params
    assert retry.user_attrs[trial_records.TrialAttr.REQUEUED_FROM] == 1


def test_max_trials_ends_the_worker(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 1})
    result = search(opened, options=replace(QUICK, max_trials=2))
    assert (result.trials, result.reason) == (2, "max_trials")
    assert states(opened) == {"complete": 2}
    result = search(opened, options=replace(QUICK, max_trials=2))
    assert (result.trials, result.reason) == (1, "done")


def test_forever_waits_for_a_raised_budget(tiny_data, tmp_path):
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
            opened.study.set_user_attr("spec", spec)  # from outside

    result = search(opened, More(), stop_event=stopping, options=replace(QUICK, forever=True))
    assert (result.trials, result.reason) == (2, "stopped")


# --- small spaces ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_space_is_exhausted_without_duplicates(tiny_data, tmp_path, sampler):
    changes = SIX | {"sampler": {"name": sampler, "startup": 2}, "budget.trials": 100}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    listener = RecordingListener()
    assert search(opened, listener, options=QUICK).reason == "exhausted"
    assert len(listener.started) == 6
    done = [t.params for t in opened.study.trials if trial_records.state_of(t) == "complete"]
    found = {(p["model.unet.width"], p["model.unet.depth"]) for p in done}
    assert found == set(itertools.product((4, 5, 6), (1, 2)))
    assert states(opened)["complete"] == 6
    assert sampler != "grid" or states(opened) == {"complete": 6}


def test_grid_resumes_without_duplicates(tiny_data, tmp_path):
    changes = SIX | {"sampler.name": "grid", "budget.trials": 100}

    class Cutting(RecordingListener):
        def epoch_ended(self, number, record):
            if number in (0, 3):
                raise KeyboardInterrupt

    for _ in range(2):
        opened = open_tiny(tiny_data, tmp_path / "s", changes)
        with pytest.raises(KeyboardInterrupt):
            search(opened, Cutting(), options=QUICK)
    # A trial lost before it sampled parameters.
    claim_as(opened, dead_process())
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, options=QUICK).reason == "exhausted"
    done = [t for t in opened.study.trials if trial_records.state_of(t) == "complete"]
    assert len(done) == len({t.user_attrs["digest"] for t in done}) == 6


def test_constraint_violations_cost_no_budget(tiny_data, tmp_path):
    changes = SIX | {"constraints": {"max_params_m": 0.004}, "budget.trials": 100}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened).reason == "exhausted"
    trials = opened.study.trials
    trained = [t for t in trials if trial_records.state_of(t) == "complete"]
    refused = [
        t for t in trials if trial_records.reason_of(t) == trial_records.EndReason.CONSTRAINT
    ]
    assert trained
    assert refused
    assert all(t.user_attrs["params"] <= 4000 for t in trained)
    assert all(t.user_attrs["params"] > 4000 for t in refused)
    assert trial_records.count_finished(trials) == len(trained)
    assert len({t.user_attrs["digest"] for t in trained + refused}) == 6


def test_search_ends_when_every_trial_is_closed(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("search.workers.loop.SKIPPED_BEFORE_EXHAUSTED", 12)
    assert SKIPPED_BEFORE_EXHAUSTED > 12
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.0001}})
    assert search(opened).reason == "exhausted"
    assert states(opened) == {"closed": 12}


def test_tried_digests_count_a_finite_space():
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


def test_requeued_trial_has_the_same_configuration_with_every_sampler(tiny_data, tmp_path):
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


def test_time_budget_prunes_the_running_trial(tiny_data, tmp_path):
    changes = {"budget.hours": 1 / 3600, "budget.trials": 1000, "budget.epochs": 10}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened).reason == "time"
    counted = states(opened)
    assert counted["complete"] >= 1
    assert counted["complete"] + counted["pruned"] == sum(counted.values())
    assert counted["pruned"] <= 1


def test_the_search_ends_when_the_rest_of_the_time_is_needed_for_the_final(tiny_data, tmp_path):
    """In the forecast, processes and report alone take longer than the time."""
    changes = {"budget.trials": 500, "budget.total_hours": 4 / 3600}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened).reason == "time"
    counted = states(opened)
    assert 1 <= counted["complete"] <= sum(counted.values()) < 50
    assert training_time.hours_spent(opened.study.trials) >= 0.2 * 4 / 3600
    assert StudyMonitor(opened, RecordingListener(), print).stop_reason() == "time"
    opened = open_tiny(tiny_data, tmp_path / "s", changes | {"budget.total_hours": 1.0})
    assert StudyMonitor(opened, RecordingListener(), print).stop_reason() is None


def test_time_of_earlier_sessions_counts(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened, options=QUICK)
    spent = training_time.hours_spent(opened.study.trials)
    changes = {"budget.trials": 9, "budget.hours": spent / 2}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, options=QUICK).reason == "time"
    assert len(opened.study.trials) == 1


def test_time_between_a_kill_and_the_next_session_does_not_count(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.hours": 1})
    claim = claim_as(opened, dead_process())
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    # As if it had been started in 2020 by a process that died a minute later.
    opened.study._storage.remove_session()
    with closing(sqlite3.connect(tmp_path / "s" / "study.db")) as database, database:
        database.execute("UPDATE trials SET datetime_start = '2020-01-01 00:00:00.000000'")
        database.execute(
            "UPDATE trial_user_attributes SET value_json = '1577836800' WHERE key = 'started_at'"
        )
        database.execute(
            "UPDATE trial_user_attributes SET value_json = '60.0' WHERE key = 'training_end_s'"
        )
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.hours": 1})
    assert search(opened, options=QUICK).reason == "done"
    assert states(opened) == {"complete": 2, "closed": 1}
    assert training_time.hours_spent(opened.study.trials[:1]) == pytest.approx(1 / 60)


# --- commands ----------------------------------------------------------------------------------


def search_in_thread(opened, listener, **options):
    """Search in a thread; return a function that waits for the result."""
    returned = []
    thread = threading.Thread(
        target=lambda: returned.append(search(opened, listener, **options)), daemon=True
    )
    thread.start()

    def end():
        thread.join(250)
        assert not thread.is_alive()
        return returned[0]

    return end


@pytest.mark.slow
def test_pause_resume_and_stop_commands(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv(GRACE_VARIABLE, str(GRACE_S))
    opened = open_tiny(tiny_data, tmp_path / "s", LONG | {"budget.trials": 50})
    queue(opened, width=FAILURE_WIDTHS["waits for suspend"])
    outside = load_study(tmp_path / "s")
    leases = TrialLeases(outside)

    def command(word):
        TrialLeases(opened.study).command = word

    class CommandingListener(CallingListener):
        def trial_ended(self, trial, best):
            super().trial_ended(trial, best)
            if trial.number == 1:
                command("stop")

    listener = CommandingListener(0, 2, lambda: command("pause"))
    end = search_in_thread(opened, listener, options=QUICK)
    assert wait_until(lambda: len(outside.trials) == 2, 200)
    assert wait_until(lambda: [w.state for w in leases.list_workers()] == ["idle"], 200)
    assert [trial_records.state_of(t) for t in outside.trials] == ["closed", "waiting"]
    leases.command = "run"
    result = end()
    assert result.reason == "stopped"
    done = outside.trials[1]
    assert (trial_records.state_of(done), done.user_attrs["resumed_at"]) == ("complete", 2)
    assert list(done.intermediate_values) == [1, 2, 3, 4, 5]
    assert trial_records.count_by_state(outside.trials)["running"] == 0
    assert leases.list_workers() == []


def test_stopped_study_runs_no_trial(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    TrialLeases(opened.study).command = "stop"
    assert search(opened).reason == "stopped"
    assert opened.study.trials == []


# --- several at once ---------------------------------------------------------------------------


#: Eight configurations and a budget of seven.
EIGHT = {
    "search.model": {"unet": {"width": [4, 7], "depth": [1, 2]}},
    "search.optimizer": {"adam": {"lr": 0.01}},
    "budget": {"trials": 7, "epochs": 1},
}


def check_shared(opened, workers: int) -> None:
    """Check that the budget is exact, without duplicates, and that the best weights are kept."""
    assert states(opened)["complete"] == trial_records.count_finished(opened.study.trials) == 7
    done = [t for t in opened.study.trials if trial_records.state_of(t) == "complete"]
    assert len({t.user_attrs["digest"] for t in done}) == 7
    assert len({t.user_attrs["owner"]["worker"] for t in done}) == workers
    kept = {t.number for t in done if WEIGHTS in opened.artifact_store.list_files(t.number)}
    assert kept == {t.number for t in trial_records.rank_trials(done)[:KEEP_BEST]}
    assert all(HISTORY in opened.artifact_store.list_files(t.number) for t in done)
    assert TrialLeases(opened.study).list_workers() == []


def test_two_workers_share_the_exact_budget_without_duplicates(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", EIGHT)
    both = threading.Barrier(2)

    class Together(RecordingListener):
        """Both workers start their first trials at the same time."""

        def trial_started(self, number, config):
            super().trial_started(number, config)
            if len(self.started) == 1:
                both.wait(200)

    ends = [
        search_in_thread(open_study(tmp_path / "s"), Together(), options=QUICK) for _ in range(2)
    ]
    results = [end() for end in ends]
    assert [each.reason for each in results] == ["done", "done"]
    assert sum(each.trials for each in results) == len(opened.study.trials)
    check_shared(opened, workers=2)


def test_worker_waits_for_the_last_running_trial(tiny_data, tmp_path):
    """One trial is lost with its worker, another one is running elsewhere."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.epochs": 1})
    claim = claim_as(opened, dead_process())
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    alive = claim_as(opened, replace(dead_process(), host="elsewhere"))
    leases = TrialLeases(opened.study)
    listener = RecordingListener()
    end = search_in_thread(opened, listener)
    # The lost trial is repeated; then the loop waits for the running one.
    assert wait_until(lambda: listener.ended, 200)
    assert states(opened) == {"closed": 1, "running": 1, "complete": 1}
    assert leases.finish(alive, TrialState.COMPLETE, 0.5)
    assert end().reason == "done"
    assert trial_records.count_finished(opened.study.trials) == 2


# --- errors ------------------------------------------------------------------------------------


def test_starting_worker_waits_for_the_database(tiny_data, tmp_path, request, monkeypatch):
    server = request.getfixturevalue("private_postgres")
    name = f"join_{os.urandom(4).hex()}"
    url = server.create(name)
    spec = tiny_spec({"budget.trials": 1})
    create_or_resume(spec, tiny_data, tmp_path / "s", url)
    location, events = StudyLocation("s", tmp_path / "s", url), []

    def on_event(text: str) -> None:
        events.append(text)
        if text.endswith("waiting"):
            server.start()

    server.stop()
    result = join_and_run_trials(location, SLOT, threading.Event(), QUICK, on_event=on_event)
    assert (result.trials, result.reason) == (1, "done")
    assert [text.split(":")[0].rstrip("0123456789. s") for text in events[:2]] == [
        "storage lost",
        "storage back after",
    ]
    # It times out with the database's own error, and ends when it is stopped.
    monkeypatch.setattr("search.workers.loop.CONNECT_TIMEOUT_S", 0.3)
    server.stop()
    try:
        with pytest.raises(InputError, match=r"cannot be used: .*refused"):
            join_and_run_trials(location, SLOT, threading.Event(), QUICK)
        stopped = threading.Event()
        stopped.set()
        assert join_and_run_trials(location, SLOT, stopped, QUICK) == WorkerResult(0, "stopped")
    finally:
        server.start()
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


def test_join_checks_the_device_first(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1, "budget.epochs": 1})
    location = StudyLocation("s", tmp_path / "s")
    with pytest.raises(Exception, match="device: 'cuda:63' is not available"):
        join_and_run_trials(location, Slot("cuda:63", 1), threading.Event())
    result = join_and_run_trials(location, Slot("cpu", 1), threading.Event())
    assert (result.trials, result.reason) == (1, "done")


def test_full_disk_ends_the_worker_without_losing_the_trial(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")

    class Full(RecordingListener):
        def trial_started(self, number, config):
            raise OSError(28, "No space left on device")

    with pytest.raises(JobFailed, match="No space left on device; make room and start again"):
        search(opened, Full(), options=QUICK)
    assert search(opened).reason == "done"
    assert states(opened) == {"complete": 3, "closed": 1}


# --- faults that are independent of the configuration ------------------------------------------

#: A space whose every configuration crashes.
CRASHING = {
    "budget.trials": 8,
    "search.model": {"unet": {"width": FAILURE_WIDTHS["exits"], "depth": 1}},
}


def test_failures_in_a_row_end_the_worker_before_the_budget_is_spent(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", CRASHING)
    with pytest.raises(WorkerBlocked, match=r"^s: 3 trials in a row \(0 1 2\) failed") as caught:
        search(opened, options=QUICK)
    assert "crash: the training process ended with exit code 3" in str(caught.value)
    assert "`lesionsearch trials retry s 0 1 2`" in str(caught.value)
    assert states(opened) == {"failed": 3}
    # A new start counts from zero, and --keep-going spends the budget.
    with pytest.raises(WorkerBlocked, match=r"\(3 4 5\)"):
        search(opened, options=QUICK)
    result = search(opened, options=replace(QUICK, keep_going=True))
    assert (result.reason, states(opened)) == ("done", {"failed": 8})


def test_a_lost_device_costs_no_trial(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s")
    queue(opened, width=FAILURE_WIDTHS["loses the device"])
    with pytest.raises(JobFailed, match="cpu or its driver fails: CUDA error: no CUDA-capable"):
        search(opened, options=QUICK)
    assert states(opened) == {"closed": 1, "waiting": 1}
    assert "times_lost" not in opened.study.trials[1].user_attrs


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder that a test may damage."""
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def truncate(opened) -> None:
    """Shorten the images in place: reading them kills a process that has them mapped."""
    os.truncate(opened.cache.path / "images.npy", 500)


@pytest.mark.parametrize("rebuilt", [False, True], ids=["by itself", "by another worker"])
def test_a_cache_that_is_truncated_during_a_training_costs_no_trial(
    tiny_data, tmp_path, own_cache, rebuilt
):
    """SIGBUS kills the real training, which then continues from its checkpoint."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1, "budget.epochs": 6})

    def damage():
        truncate(opened)
        if rebuilt:
            build_cache(opened.index, 16)

    events = []
    listener = CallingListener(0, 2, damage)
    assert search(opened, listener, on_event=events.append).reason == "done"
    cut, done = opened.study.trials
    assert cut.user_attrs["message"] == CACHE_DAMAGED
    assert states(opened) == {"closed": 1, "complete": 1}
    assert done.user_attrs["resumed_at"] >= 1
    assert list(done.intermediate_values) == [1, 2, 3, 4, 5, 6]
    text = f"cache: {opened.cache.path} was damaged or deleted; it is built again"
    assert events == ([] if rebuilt else [text])


def test_a_cache_that_is_deleted_between_trials_is_built_again(tiny_data, tmp_path, own_cache):
    opened = open_tiny(tiny_data, tmp_path / "s")
    pixels = opened.cache.images[:].copy()

    class Deleting(RecordingListener):
        def trial_ended(self, trial, best):
            shutil.rmtree(own_cache)

    assert search(opened, Deleting(), options=QUICK).reason == "done"
    assert states(opened) == {"complete": 3}
    assert np.array_equal(Cache(opened.cache.path).images, pixels)


def test_images_that_are_gone_with_the_cache_end_the_worker_and_cost_no_trial(
    tiny_data, tmp_path, own_cache
):
    shutil.copytree(tiny_data, tmp_path / "data")
    opened = open_tiny(tmp_path / "data", tmp_path / "s")

    class Losing(RecordingListener):
        def trial_ended(self, trial, best):
            shutil.rmtree(own_cache)
            (tmp_path / "data").rename(tmp_path / "moved")

    text = r"cannot be built again: .*/data/images/im000\.png: No such file .*; restore the images"
    with pytest.raises(WorkerBlocked, match=text):
        search(opened, Losing(), options=QUICK)
    assert states(opened) == {"complete": 1}
    (tmp_path / "moved").rename(tmp_path / "data")
    assert search(opened, options=QUICK).reason == "done"
    assert states(opened) == {"complete": 3}
