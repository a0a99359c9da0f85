"""The main job: the budget is exact, whoever was cut off, whatever failed."""

import itertools
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from optuna.trial import TrialState

from lesionseg.errors import InputError
from search import trials
from search.run import EXHAUSTED, default_slot, search, sigterm_as_interrupt
from search.samplers import SAMPLERS
from search.suggest import suggest
from search.worker import requeue
from tests.search.helpers import SLOT, Listening, in_memory, open_tiny
from tests.search.test_samplers import SPACE

#: Six configurations in all: 2 depths x 3 widths.
SIX = {
    "search.model": {"unet": {"width": [4, 6], "depth": [1, 2]}},
    "search.optimizer": {"adam": {"lr": 0.01}},
    "budget.epochs": 1,
}


def states(opened) -> Counter:
    return Counter(trials.state_of(t) for t in opened.study.trials)


# --- the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "grid"])
def test_a_study_runs_its_budget_exactly(tiny_data, tmp_path, sampler):
    opened = open_tiny(
        tiny_data, tmp_path / "s", {"sampler": {"name": sampler, "startup": 2}, "budget.trials": 4}
    )
    heard = Listening()
    outcome = search(opened, SLOT, heard)
    assert not outcome.exhausted
    assert not outcome.out_of_time
    assert states(opened) == {"complete": 4}
    assert heard.started == [0, 1, 2, 3]
    assert heard.epochs == [(n, e) for n in range(4) for e in (1, 2)]
    best = [b for _, _, b in heard.ended]
    values = [t.value for t in opened.study.trials]
    assert best == [values.index(max(values[: i + 1])) for i in range(4)]


def test_a_study_whose_budget_is_spent_runs_nothing(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened, SLOT, Listening())
    heard = Listening()
    outcome = search(opened, SLOT, heard)
    assert heard.started == []
    assert (outcome.exhausted, outcome.out_of_time) == (False, False)


def test_more_trials_go_on_where_the_others_ended(tiny_data, tmp_path):
    for budget in (2, 3, 5):
        opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": budget})
        search(opened, SLOT, Listening())
        assert states(opened) == {"complete": budget}
    digests = [t.user_attrs["digest"] for t in opened.study.trials]
    assert len(set(digests)) == 5


def test_a_study_goes_on_after_an_interruption_to_the_exact_budget(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 3})

    class Once(Listening):
        def epoch_ended(self, number, record):
            if number == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(opened, SLOT, Once())
    assert states(opened) == {"complete": 1, "skipped": 1, "waiting": 1}
    again = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 3})
    search(again, SLOT, Listening())
    assert states(again) == {"complete": 3, "skipped": 1}
    # The one that was cut off was taken up again first, with its parameters.
    cut, retry = again.study.trials[1:3]
    assert retry.params == cut.params
    assert retry.user_attrs["retry_of"] == 1


def test_failing_trials_are_recorded_cost_budget_and_are_not_fatal(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 4, "budget.epochs": 1})

    class Breaking(Listening):
        """Every second trial loses the folder that it writes to."""

        def trial_started(self, number, config):
            super().trial_started(number, config)
            if number % 2:
                place = opened.folder / "trials" / str(number)
                place.mkdir(parents=True)
                (place / ".model.safetensors.partial").mkdir()

    search(opened, SLOT, Breaking())
    assert [trials.state_of(t) for t in opened.study.trials] == ["complete", "failed"] * 2
    assert {t.user_attrs["reason"] for t in opened.study.trials[1::2]} == {"crash"}


# --- small spaces ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_is_tried_whole_and_once_and_then_it_ends(tiny_data, tmp_path, sampler):
    changes = SIX | {"sampler": {"name": sampler, "startup": 2}, "budget.trials": 100}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    heard = Listening()
    outcome = search(opened, SLOT, heard)
    assert outcome.exhausted
    assert len(heard.started) == 6
    done = [t.params for t in opened.study.trials if trials.state_of(t) == "complete"]
    found = {(p["model.unet.width"], p["model.unet.depth"]) for p in done}
    assert found == set(itertools.product((4, 5, 6), (1, 2)))
    assert states(opened)["complete"] == 6
    # A grid proposes nothing twice.
    assert sampler != "grid" or states(opened) == {"complete": 6}


def test_a_space_of_one_configuration_is_one_trial(tiny_data, tmp_path):
    changes = SIX | {"search.model": {"unet": {"width": 4, "depth": 1}}, "budget.trials": 5}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, SLOT, Listening()).exhausted
    assert states(opened) == {"complete": 1}


def test_a_grid_goes_on_after_a_cut_and_still_lists_everything_once(tiny_data, tmp_path):
    changes = SIX | {"sampler.name": "grid", "budget.trials": 100}

    class Cutting(Listening):
        def epoch_ended(self, number, record):
            if number in (0, 3):
                raise KeyboardInterrupt

    for _ in range(2):
        opened = open_tiny(tiny_data, tmp_path / "s", changes)
        with pytest.raises(KeyboardInterrupt):
            search(opened, SLOT, Cutting())
    # One more is lost without a trace of what it would have been.
    opened.study.ask()
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, SLOT, Listening()).exhausted
    done = [t for t in opened.study.trials if trials.state_of(t) == "complete"]
    assert len(done) == len({t.user_attrs["digest"] for t in done}) == 6


def test_a_constraint_that_forbids_part_of_a_space_costs_no_budget(tiny_data, tmp_path):
    changes = SIX | {"constraints": {"max_params_m": 0.004}, "budget.trials": 100}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, SLOT, Listening()).exhausted
    known = opened.study.trials
    trained = [t for t in known if trials.state_of(t) == "complete"]
    refused = [t for t in known if trials.reason_of(t) == trials.CONSTRAINT]
    assert trained
    assert refused
    assert all(t.user_attrs["params"] <= 4000 for t in trained)
    assert all(t.user_attrs["params"] > 4000 for t in refused)
    assert trials.spent(known) == len(trained)
    assert len({t.user_attrs["digest"] for t in trained + refused}) == 6


def test_a_constraint_that_forbids_everything_ends_a_search_that_could_go_on_for_ever(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("search.run.EXHAUSTED", 12)
    assert EXHAUSTED > 12
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.0001}})
    assert search(opened, SLOT, Listening()).exhausted
    assert states(opened) == {"skipped": 12}


def test_tried_covers_a_finite_space_exactly_when_nothing_is_left():
    """The search's end rests on this count; held against a walk through the whole space."""
    study = in_memory(SAMPLERS["random"](0, 0))
    seen = set()
    while len(seen) < SPACE.size():
        trial = study.ask()
        digest = suggest(trial, SPACE).digest()
        reason = trials.DUPLICATE if digest in seen else None
        if reason:
            trial.set_user_attr("reason", reason)
        else:
            trial.set_user_attr("digest", digest)
        seen.add(digest)
        study.tell(trial, state=TrialState.FAIL)
        assert len(trials.tried(study.trials)) == len(seen)


# --- time --------------------------------------------------------------------------------------


def test_hours_end_a_study_after_its_first_complete_trial(tiny_data, tmp_path):
    changes = {"budget.hours": 1e-9, "budget.trials": 5}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    outcome = search(opened, SLOT, Listening())
    assert outcome.out_of_time
    assert len(opened.study.trials) <= 1


def test_hours_cut_the_trial_at_work_when_there_is_a_result(tiny_data, tmp_path):
    changes = {"budget.hours": 1 / 3600, "budget.trials": 1000, "budget.epochs": 10}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, SLOT, Listening()).out_of_time
    counted = states(opened)
    assert counted["complete"] >= 1
    assert counted["complete"] + counted["pruned"] == sum(counted.values())
    assert counted["pruned"] <= 1


def test_hours_of_earlier_sessions_count(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 1})
    search(opened, SLOT, Listening())
    spent = trials.hours_spent(opened.study.trials)
    changes = {"budget.trials": 9, "budget.hours": spent / 2}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert search(opened, SLOT, Listening()).out_of_time
    assert len(opened.study.trials) == 1


def test_a_night_between_a_kill_and_the_next_session_is_not_training_time(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.hours": 1})
    trial = opened.study.ask()
    suggest(trial, opened.spec.space)
    # As if it had been begun long ago by a process that is dead.
    opened.study._storage.remove_session()
    with closing(sqlite3.connect(tmp_path / "s" / "study.db")) as database, database:
        database.execute("UPDATE trials SET datetime_start = '2020-01-01 00:00:00.000000'")
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.trials": 2, "budget.hours": 1})
    outcome = search(opened, SLOT, Listening())
    assert not outcome.out_of_time
    assert states(opened) == {"complete": 2, "skipped": 1}


# --- signals and slots -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_is_an_interrupt_once_and_the_handlers_come_back(number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    calm = []

    def be_interrupted():
        with sigterm_as_interrupt():
            try:
                os.kill(os.getpid(), number)
            finally:
                # An impatient second and third change nothing while the first is dealt with.
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                calm.append(True)

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert calm
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_default_slot_is_this_machine():
    slot = default_slot("cpu")
    assert slot.device == "cpu"
    assert slot.threads == len(os.sched_getaffinity(0))
    assert default_slot("cpu", 3).threads == 3
    with pytest.raises(InputError, match="device: "):
        default_slot("gpu")


def test_requeue_is_the_same_for_every_sampler(tiny_data, tmp_path):
    for sampler in SAMPLERS:
        changes = SIX | {"sampler.name": sampler}
        opened = open_tiny(tiny_data, tmp_path / sampler, changes)
        trial = opened.study.ask()
        config = suggest(trial, opened.spec.space)
        requeue(opened.study, trial.number, trials.LOST)
        assert suggest(opened.study.ask(), opened.spec.space) == config
