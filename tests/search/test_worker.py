"""One trial's life: claimed, trained in a child process, reported, told; or cut off."""

import csv
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import fields

import psutil
import pytest
from optuna.trial import TrialState

from lesionseg import checkpoint
from lesionseg.config import TrialConfig
from lesionseg.metrics import METRICS
from lesionseg.train import EpochRecord
from search import trials
from search.pruners import PRUNERS
from search.suggest import suggest
from search.worker import KEEP_BEST, Slot, Worker, is_gone, owner, reap, requeue
from tests.conftest import write_folder
from tests.search.helpers import SLOT, Listening, open_tiny


def worker_of(opened, listener=None, **kwargs) -> Worker:
    return Worker(
        opened.study,
        opened.spec,
        opened.material,
        opened.folder,
        kwargs.pop("slot", SLOT),
        listener or Listening(),
        **kwargs,
    )


@pytest.fixture
def opened(tiny_data, tmp_path):
    return open_tiny(tiny_data, tmp_path / "s")


def queue(opened, width=4, lr=0.01):
    opened.study.enqueue_trial({"model.unet.width": width, "optimizer.adam.lr": lr})


# --- a trial that runs its course --------------------------------------------------------------


def test_a_complete_trial_is_on_record_with_all_that_is_said_of_it(opened):
    heard = Listening()
    queue(opened)
    done = worker_of(opened, heard).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.params == {"model.unet.width": 4, "optimizer.adam.lr": 0.01}
    attrs = done.user_attrs
    config = TrialConfig.from_dict(attrs["config"])
    assert (config.model.params["width"], config.model.params["depth"]) == (4, 1)
    assert config.model.params["norm"] == "batch"  # what is settled is on record too
    assert attrs["digest"] == config.digest()
    assert attrs["epochs"] == 2
    assert attrs["params"] > 0
    assert attrs["macs"] > 0
    assert attrs["seconds"] > 0
    assert attrs["peak_memory"] > 0
    assert attrs["owner"] == owner()
    # What was reported each epoch, what is told, and what is said of the best epoch agree.
    assert list(done.intermediate_values) == [1, 2]
    assert done.value == max(done.intermediate_values.values())
    assert done.intermediate_values[attrs["best_epoch"]] == done.value
    assert attrs["val"].keys() == set(METRICS)
    assert attrs["val"]["dice"] == done.value
    assert heard.started == [0]
    assert heard.epochs == [(0, 1), (0, 2)]
    assert heard.ended == [(0, "COMPLETE", 0)]


def test_history_and_weights_lie_in_the_trials_folder(opened):
    done = worker_of(opened).run_one()
    place = opened.folder / "trials" / "0"
    with (place / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    plain = [f.name for f in fields(EpochRecord) if f.name != "metrics"]
    assert list(rows[0]) == [*plain, *METRICS]
    assert [int(r["epoch"]) for r in rows] == [1, 2]
    assert [float(r["dice"]) for r in rows] == list(done.intermediate_values.values())
    _, config = checkpoint.load(place / "model.safetensors")
    assert config.digest() == done.user_attrs["digest"]


def test_weights_are_kept_of_the_best_trials_only(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 1})
    worker = worker_of(opened)
    for i in range(KEEP_BEST + 2):
        queue(opened, lr=0.01 * (i + 1))
        worker.run_one()
    kept = {int(p.parent.name) for p in (opened.folder / "trials").glob("*/model.safetensors")}
    assert kept == {t.number for t in trials.ranked(opened.study.trials)[:KEEP_BEST]}
    # Histories are small, and kept of all.
    assert len(list((opened.folder / "trials").glob("*/history.csv"))) == KEEP_BEST + 2


def test_the_same_configuration_gives_the_same_value_on_a_cpu(tiny_data, tmp_path):
    values = []
    for name in ("a", "b"):
        opened = open_tiny(tiny_data, tmp_path / name)
        queue(opened)
        values.append(worker_of(opened).run_one().intermediate_values)
    assert values[0] == values[1]


def test_early_stopping_is_a_complete_trial_with_its_reason(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.patience": 1, "budget.epochs": 50})
    done = worker_of(opened).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.user_attrs["reason"] == "early stopping"
    assert done.user_attrs["epochs"] < 50


# --- pruning -----------------------------------------------------------------------------------


def test_a_trial_that_is_not_worth_it_is_pruned_and_keeps_its_record(tiny_data, tmp_path):
    changes = {"pruner": {"name": "median", "min_epochs": 2, "startup": 1}, "budget.epochs": 4}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert isinstance(opened.study.pruner, type(PRUNERS["median"](1, 1, 1)))
    rival = opened.study.ask()
    for epoch in range(1, 5):
        rival.report(1.0, epoch)
    opened.study.tell(rival, 1.0)
    queue(opened)
    done = worker_of(opened).run_one()
    assert done.state == TrialState.PRUNED
    assert list(done.intermediate_values) == [1, 2]
    assert done.user_attrs["epochs"] == 2
    assert "reason" not in done.user_attrs
    assert not (opened.folder / "trials" / "1" / "model.safetensors").exists()
    assert trials.state_of(done) == "pruned"


def test_a_trial_is_never_pruned_after_its_last_epoch(tiny_data, tmp_path):
    changes = {"pruner": {"name": "median", "min_epochs": 2, "startup": 1}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    rival = opened.study.ask()
    for epoch in (1, 2):
        rival.report(1.0, epoch)
    opened.study.tell(rival, 1.0)
    assert worker_of(opened).run_one().state == TrialState.COMPLETE


def test_when_the_time_is_over_the_first_complete_trial_is_let_through(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 3})
    worker = worker_of(opened, deadline=lambda: True)
    first, second = worker.run_one(), worker.run_one()
    assert first.state == TrialState.COMPLETE
    assert second.state == TrialState.PRUNED
    assert second.user_attrs["reason"] == "time"
    assert list(second.intermediate_values) == [1]


# --- trials that are skipped -------------------------------------------------------------------


def test_a_configuration_is_not_trained_twice(opened):
    heard = Listening()
    worker = worker_of(opened, heard)
    queue(opened)
    queue(opened)
    first, second = worker.run_one(), worker.run_one()
    assert second.state == TrialState.FAIL
    assert second.user_attrs["reason"] == trials.DUPLICATE
    assert second.user_attrs["twin"] == first.number
    assert second.user_attrs["message"] == "the same configuration as trial 0"
    assert second.intermediate_values == {}
    assert heard.started == [0]
    assert trials.spent(opened.study.trials) == 1


def test_a_network_that_is_too_large_is_refused_before_training(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.001}})
    done = worker_of(opened).run_one()
    assert done.state == TrialState.PRUNED
    assert done.user_attrs["reason"] == trials.CONSTRAINT
    assert done.user_attrs["message"].endswith("constraints.max_params_m is 0.001")
    assert done.intermediate_values == {}
    assert done.constraints["max_params_m"] == pytest.approx(
        done.user_attrs["params"] / 1e6 - 0.001
    )
    assert trials.state_of(done) == "skipped"
    assert trials.spent([done]) == 0


def test_a_network_that_is_small_enough_is_trained_and_its_slack_is_on_record(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 1}})
    done = worker_of(opened).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.constraints["max_params_m"] == pytest.approx(done.user_attrs["params"] / 1e6 - 1)


# --- trials that fail --------------------------------------------------------------------------


def test_a_training_that_breaks_is_recorded_and_costs_one_trial(tiny_data, tmp_path):
    """The cache goes away under a running study."""
    data = write_folder(tmp_path / "data", 12)
    opened = open_tiny(data, tmp_path / "s")
    gone = opened.cache.path.rename(tmp_path / "hidden")
    worker = worker_of(opened)
    done = worker.run_one()
    assert done.state == TrialState.FAIL
    assert done.user_attrs["reason"] == "crash"
    assert done.user_attrs["message"].startswith("FileNotFoundError: ")
    assert "Traceback" in done.user_attrs["trace"]
    assert trials.spent([done]) == 1
    shutil.move(gone, opened.cache.path)
    assert worker.run_one().state == TrialState.COMPLETE


def test_a_child_that_is_killed_costs_one_trial_with_the_reason(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 50})

    class Killing(Listening):
        def epoch_ended(self, number, record):
            super().epoch_ended(number, record)
            if number == 0 and record.epoch == 3:
                for process in psutil.Process().children(recursive=True):
                    if process.ppid() != os.getpid():  # not the server that forks them
                        process.send_signal(signal.SIGKILL)
                        process.wait(5)

    done = worker_of(opened, Killing()).run_one()
    assert done.state == TrialState.FAIL
    assert done.user_attrs["reason"] == "crash"
    assert "SIGKILL (out of memory?)" in done.user_attrs["message"]
    assert list(done.intermediate_values) == [1, 2, 3]


def test_a_device_that_is_not_there_fails_the_trial(opened):
    done = worker_of(opened, slot=Slot("cuda:63", 1)).run_one()
    assert done.user_attrs["reason"] == "config"
    assert "cuda:63" in done.user_attrs["message"]


# --- trials that are cut off -------------------------------------------------------------------


class Interrupting(Listening):
    """Ctrl-C after one epoch of its first trial, or when the trial was told."""

    def __init__(self, at: str):
        super().__init__()
        self.at = at

    def trial_started(self, number, config):
        if self.at == "start":
            raise KeyboardInterrupt

    def epoch_ended(self, number, record):
        if self.at == "epoch":
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["start", "epoch"])
def test_an_interrupted_trial_is_queued_again_and_counts_once(opened, at):
    queue(opened, lr=0.02)
    with pytest.raises(KeyboardInterrupt):
        worker_of(opened, Interrupting(at)).run_one()
    cut, waiting = opened.study.trials
    assert trials.state_of(cut) == "skipped"
    assert trials.reason_of(cut) == trials.INTERRUPTED
    assert waiting.state == TrialState.WAITING
    assert waiting.user_attrs == {"retry_of": 0}
    assert not (opened.folder / "trials" / "0").exists()
    done = worker_of(opened).run_one()
    assert (done.number, done.state) == (1, TrialState.COMPLETE)
    assert done.params == cut.params == {"model.unet.width": 4, "optimizer.adam.lr": 0.02}
    assert trials.spent(opened.study.trials) == 1
    # Cut off again, it still points at the first.
    queue(opened, lr=0.03)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            worker_of(opened, Interrupting(at)).run_one()
    assert opened.study.trials[-1].user_attrs == {"retry_of": 2}


def test_an_interruption_after_a_trial_was_told_takes_nothing_of_it_away(opened, monkeypatch):
    worker = worker_of(opened)

    def finish_then_interrupt(trial, result, verdict, finish=worker._finish):
        finish(trial, result, verdict)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_finish", finish_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        worker.run_one()
    (done,) = opened.study.trials
    assert done.state == TrialState.COMPLETE
    assert (opened.folder / "trials" / "0" / "model.safetensors").is_file()


def test_a_queued_trial_that_is_cut_off_before_it_drew_keeps_its_parameters(opened):
    queue(opened, width=7, lr=0.05)
    claimed = opened.study.ask()
    assert requeue(opened.study, claimed.number, trials.LOST)
    again = worker_of(opened).run_one()
    assert again.params == {"model.unet.width": 7, "optimizer.adam.lr": 0.05}
    assert again.user_attrs["retry_of"] == claimed.number


def test_a_trial_that_is_cut_off_before_it_drew_anything_is_closed_and_not_repeated(opened):
    claimed = opened.study.ask()
    assert requeue(opened.study, claimed.number, trials.LOST)
    (closed,) = opened.study.trials
    assert trials.state_of(closed) == "skipped"


def test_a_trial_that_reached_its_end_is_not_queued_again(opened):
    done = worker_of(opened).run_one()
    assert not requeue(opened.study, done.number, trials.INTERRUPTED)
    assert [t.state for t in opened.study.trials] == [TrialState.COMPLETE]


def dead() -> dict:
    """The identity of a process that has ended."""
    process = subprocess.Popen(["true"])
    since = psutil.Process(process.pid).create_time()
    process.wait()
    return {"host": socket.gethostname(), "pid": process.pid, "since": since}


@pytest.mark.parametrize(
    ("who", "gone"),
    [
        (lambda: None, True),
        (owner, False),
        (dead, True),
        # The number was given to another process: this one.
        (lambda: owner() | {"since": 0.0}, True),
        # Another host's processes cannot be seen from here.
        (lambda: dead() | {"host": "elsewhere"}, False),
    ],
)
def test_a_process_is_gone_only_where_that_is_known(who, gone):
    assert is_gone(who()) is gone


def test_the_trials_of_dead_processes_go_back_to_the_queue_and_others_do_not(opened):
    study = opened.study
    owners = [dead(), owner(), dead() | {"host": "elsewhere"}, None]
    for i, who in enumerate(owners):
        queue(opened, lr=0.01 * (i + 1))
        trial = study.ask()
        trial.suggest_int("model.unet.width", 4, 8, log=True)
        if who:
            trial.set_user_attr("owner", who)
        (opened.folder / "trials" / str(i)).mkdir(parents=True)
    assert reap(study, opened.folder) == [0, 3]
    states = [trials.state_of(t) for t in study.trials]
    assert states == ["skipped", "running", "running", "skipped", "waiting", "waiting"]
    assert [t.user_attrs["retry_of"] for t in study.trials[4:]] == [0, 3]
    assert {p.name for p in (opened.folder / "trials").iterdir()} == {"1", "2"}
    assert reap(study, opened.folder) == []
    # What was queued for it is repeated in full, drawn or not.
    worker = worker_of(opened)
    assert worker.run_one().params == {"model.unet.width": 4, "optimizer.adam.lr": 0.01}
    assert worker.run_one().params == {"model.unet.width": 4, "optimizer.adam.lr": 0.04}


def test_a_double_that_a_kill_between_queueing_and_closing_leaves_is_recognised(opened):
    queue(opened)
    trial = opened.study.ask()
    trial.set_user_attr("owner", dead())
    # The killed process had queued it again already.
    opened.study.enqueue_trial(trial._cached_frozen_trial.system_attrs["fixed_params"])
    reap(opened.study, opened.folder)
    worker = worker_of(opened)
    states = [trials.state_of(worker.run_one()) for _ in range(2)]
    assert states == ["complete", "skipped"]
    assert trials.spent(opened.study.trials) == 1


def test_a_trial_that_keeps_killing_its_worker_fails_for_good(opened):
    for _ in range(4):
        claimed = opened.study.ask()
        suggest(claimed, opened.spec.space)
        assert reap(opened.study, opened.folder, alone=True) == [claimed.number]
    known = trials.all_trials(opened.study)
    assert [trials.state_of(t) for t in known] == ["skipped"] * 3 + ["failed"]
    assert len({str(t.params) for t in known}) == 1
    assert "4 times" in known[-1].user_attrs["message"]
    assert trials.spent(known) == 1


def test_a_trial_of_another_host_is_dead_where_nobody_else_can_be_at_work(opened):
    claimed = opened.study.ask()
    suggest(claimed, opened.spec.space)
    claimed.set_user_attr("owner", {"host": "elsewhere", "pid": 1, "since": 0.0})
    assert reap(opened.study, opened.folder) == []
    assert reap(opened.study, opened.folder, alone=True) == [claimed.number]
