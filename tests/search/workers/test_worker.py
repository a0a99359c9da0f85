"""Trials of one worker: claimed, trained in a process, reported, finished or requeued."""

import csv
import os
import subprocess
import threading
from dataclasses import fields, replace

import psutil
import pytest
import torch
from optuna.pruners import ThresholdPruner
from optuna.trial import FixedTrial, TrialState

from lesionseg.config import TrialConfig
from lesionseg.metrics.overlap import METRICS
from lesionseg.training import checkpoint
from lesionseg.training.types import EpochRecord
from search.storage import trial_records
from search.storage.lease_types import Claim, ProcessId, current_process
from search.storage.leases import TrialLeases
from search.storage.retention import HISTORY, KEEP_BEST, PICTURE, STATE, WEIGHTS
from search.storage.study_rows import MAX_LOSSES
from search.storage.trial_records import EndReason
from search.study.opening import open_study
from search.study.pruners import PRUNERS
from search.study.suggest import suggest
from search.trial_process import supervisor
from search.trial_process.protocol import Suspended, Trained
from search.workers import trial_runner
from search.workers.trial_progress import StateUploader
from search.workers.worker import load_claimed_trial
from tests.search import failing_training
from tests.search.failing_training import FAILURE_WIDTHS, SUSPEND_POINT
from tests.search.helpers import (
    LONG_WAIT_S,
    SLOT,
    RecordingListener,
    make_worker,
    open_tiny,
    queue,
    wait_until,
)


@pytest.fixture
def opened(tiny_data, tmp_path):
    return open_tiny(tiny_data, tmp_path / "s")


def dead_process() -> ProcessId:
    """Return the id of a process that has ended."""
    process = subprocess.Popen(["true"])
    start_time = psutil.Process(process.pid).create_time()
    process.wait()
    return replace(current_process(), pid=process.pid, start_time=start_time)


def claim_as(opened, process: ProcessId) -> Claim:
    """Claim a trial for another process."""
    leases = TrialLeases(opened.study)
    claim = leases.claim(leases.register_worker(SLOT, process), bounded=False)
    assert isinstance(claim, Claim)
    return claim


def read_history(opened, number: int) -> list[dict[str, str]]:
    with (opened.folder / "trials" / str(number) / HISTORY).open(newline="") as file:
        return list(csv.DictReader(file))


# --- complete trials ---------------------------------------------------------------------------


def test_complete_trial_has_values_attributes_history_and_weights(opened):
    listener = RecordingListener()
    queue(opened)
    worker = make_worker(opened, listener)
    trial = worker.run_one()
    assert trial.state == TrialState.COMPLETE
    assert trial.params == {"model.unet.width": 4, "optimizer.adam.lr": 0.01}
    attrs = trial.user_attrs
    config = TrialConfig.from_dict(attrs["config"])
    assert (config.model.params["width"], config.model.params["depth"]) == (4, 1)
    assert config.model.params["norm"] == "batch"  # fixed values too
    assert attrs["digest"] == config.digest()
    assert attrs["epochs"] == 2
    assert attrs["params"] > 0
    assert attrs["macs"] > 0
    assert attrs["seconds"] > 0
    assert attrs["peak_memory"] > 0
    assert attrs["owner"]["worker"] == worker.heartbeat.worker.id
    assert attrs["owner"]["pid"] == os.getpid()
    assert (attrs["owner"]["device"], attrs["owner"]["threads"]) == ("cpu", 1)
    assert attrs["started_at"] < attrs["ended_at"] < attrs["started_at"] + 300
    assert list(trial.intermediate_values) == [1, 2]
    assert trial.value == max(trial.intermediate_values.values())
    assert trial.intermediate_values[attrs["best_epoch"]] == trial.value
    assert attrs["val"].keys() == set(METRICS)
    assert attrs["val"]["dice"] == trial.value
    # The trial's folder.
    rows = read_history(opened, 0)
    plain = [f.name for f in fields(EpochRecord) if f.name != "metrics"]
    assert list(rows[0]) == [*plain, *METRICS]
    assert [int(r["epoch"]) for r in rows] == [1, 2]
    assert [float(r["dice"]) for r in rows] == list(trial.intermediate_values.values())
    _, stored_config = checkpoint.load(opened.folder / "trials" / "0" / WEIGHTS)
    assert stored_config.digest() == attrs["digest"]
    assert listener.started == [0]
    assert listener.epochs == [(0, 1), (0, 2)]
    assert listener.ended == [(0, "COMPLETE", 0)]


@pytest.mark.parametrize(("finalists", "expected"), [(1, KEEP_BEST), (4, 4)])
def test_only_the_weights_of_the_best_trials_are_kept(tiny_data, tmp_path, finalists, expected):
    """At least those of the finalists."""
    changes = {"budget.epochs": 1, "final.finalists": finalists}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    worker = make_worker(opened)
    for i in range(KEEP_BEST + 2):
        queue(opened, lr=0.01 * (i + 1))
        worker.run_one()
    kept = {int(p.parent.name) for p in (opened.folder / "trials").glob("*/model.safetensors")}
    assert kept == {t.number for t in trial_records.rank_trials(opened.study.trials)[:expected]}
    assert len(list((opened.folder / "trials").glob("*/history.csv"))) == KEEP_BEST + 2


def test_early_stopping_completes_the_trial_with_a_reason(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.patience": 1, "budget.epochs": 50})
    done = make_worker(opened).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.user_attrs["reason"] == "early stopping"
    assert done.user_attrs["epochs"] < 50


# --- pruning -----------------------------------------------------------------------------------


def test_pruned_trial_keeps_its_values(tiny_data, tmp_path):
    changes = {"pruner": {"name": "median", "min_epochs": 2, "startup": 1}, "budget.epochs": 4}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    assert isinstance(opened.study.pruner, type(PRUNERS["median"](1, 1, 1)))
    rival = opened.study.ask()
    for epoch in range(1, 5):
        rival.report(1.0, epoch)
    opened.study.tell(rival, 1.0)
    queue(opened)
    done = make_worker(opened).run_one()
    assert done.state == TrialState.PRUNED
    assert list(done.intermediate_values) == [1, 2]
    assert done.user_attrs["epochs"] == 2
    assert "reason" not in done.user_attrs
    assert not (opened.folder / "trials" / "1" / "model.safetensors").exists()
    assert trial_records.state_of(done) == "pruned"


def test_trial_is_not_pruned_after_its_last_epoch(tiny_data, tmp_path):
    changes = {"pruner": {"name": "median", "min_epochs": 2, "startup": 1}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    rival = opened.study.ask()
    for epoch in (1, 2):
        rival.report(1.0, epoch)
    opened.study.tell(rival, 1.0)
    assert make_worker(opened).run_one().state == TrialState.COMPLETE


def test_share_of_the_epochs_is_not_pruned_after_its_own_last_epoch(tiny_data, tmp_path):
    changes = {"pruner": {"name": "median", "min_epochs": 2, "startup": 1}, "budget.epochs": 4}
    opened = open_with_perfect_rival(tiny_data, tmp_path / "s", changes)
    config = suggest(FixedTrial({"model.unet.width": 4, "optimizer.adam.lr": 0.01}),
                     opened.spec.space)  # fmt: skip
    whole = config.to_dict() | {"epochs": 2}
    TrialLeases(opened.study).enqueue([({}, {trial_records.TrialAttr.FIXED_CONFIG: whole})])
    done = make_worker(opened).run_one()
    assert (done.state, list(done.intermediate_values)) == (TrialState.COMPLETE, [1, 2])


def test_trial_is_not_pruned_at_the_epoch_at_which_it_stops_early(tiny_data, tmp_path):
    changes = {"budget.epochs": 50, "budget.patience": 1}
    alone = open_tiny(tiny_data, tmp_path / "alone", changes)
    queue(alone)
    last = make_worker(alone).run_one().user_attrs["epochs"]
    changes["pruner"] = {"name": "median", "min_epochs": last, "startup": 1}
    opened = open_with_perfect_rival(tiny_data, tmp_path / "s", changes)
    queue(opened)
    done = make_worker(opened).run_one()
    assert (done.state, done.user_attrs["epochs"]) == (TrialState.COMPLETE, last)
    assert done.user_attrs["reason"] == "early stopping"


def open_with_perfect_rival(data, folder, changes):
    """Open a study in which each other trial is pruned by the median as early as possible."""
    opened = open_tiny(data, folder, changes)
    rival = opened.study.ask()
    for epoch in range(1, opened.spec.budget.epochs + 1):
        rival.report(1.0, epoch)
    opened.study.tell(rival, 1.0)
    return opened


def test_out_of_time_the_first_trial_is_completed_and_the_second_pruned(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 3})
    worker = make_worker(opened, is_out_of_time=lambda: True)
    first, second = worker.run_one(), worker.run_one()
    assert first.state == TrialState.COMPLETE
    assert second.state == TrialState.PRUNED
    assert second.user_attrs["reason"] == "time"
    assert list(second.intermediate_values) == [1]


# --- closed trials -----------------------------------------------------------------------------


def test_duplicate_is_closed(opened):
    listener = RecordingListener()
    worker = make_worker(opened, listener)
    queue(opened)
    queue(opened)
    first, second = worker.run_one(), worker.run_one()
    assert second.state == TrialState.FAIL
    assert second.user_attrs["reason"] == trial_records.EndReason.DUPLICATE
    assert second.user_attrs["duplicate_of"] == first.number
    assert second.user_attrs["message"] == "the same configuration as trial 0"
    assert second.intermediate_values == {}
    assert listener.started == [0]
    assert trial_records.count_finished(opened.study.trials) == 1


def test_network_that_violates_a_constraint_is_closed(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.001}})
    done = make_worker(opened).run_one()
    assert done.state == TrialState.PRUNED
    assert done.user_attrs["reason"] == trial_records.EndReason.CONSTRAINT
    assert done.user_attrs["message"].endswith("constraints.max_params_m is 0.001")
    assert done.intermediate_values == {}
    assert done.constraints["max_params_m"] == pytest.approx(
        done.user_attrs["params"] / 1e6 - 0.001
    )
    assert trial_records.state_of(done) == "closed"
    assert trial_records.count_finished([done]) == 0


def test_invalid_queued_configuration_is_closed(opened):
    worker = make_worker(opened)
    worker.leases.enqueue([({}, {trial_records.TrialAttr.FIXED_CONFIG: {"bach_size": 3}})])
    done = worker.run_one()
    assert trial_records.state_of(done) == "closed"
    assert trial_records.reason_of(done) == trial_records.EndReason.CONFIG
    assert "unknown key 'bach_size'" in done.user_attrs["message"]


# --- failed trials -----------------------------------------------------------------------------


# --- interrupted trials ------------------------------------------------------------------------


class Interrupting(RecordingListener):
    """Raises KeyboardInterrupt at the start of the trial or after its first epoch."""

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
def test_interrupted_trial_is_requeued_and_counts_once(opened, at):
    queue(opened, lr=0.02)
    with pytest.raises(KeyboardInterrupt):
        make_worker(opened, Interrupting(at)).run_one()
    cut, waiting = opened.study.trials
    assert trial_records.state_of(cut) == "closed"
    assert trial_records.reason_of(cut) == trial_records.EndReason.INTERRUPTED
    assert waiting.state == TrialState.WAITING
    assert waiting.user_attrs.pop("digest") == cut.user_attrs["digest"]
    assert waiting.user_attrs == {
        trial_records.TrialAttr.REQUEUED_FROM: 0,
        trial_records.TrialAttr.ATTEMPTS: [0],
    }
    assert set(opened.artifact_store.list_files(0)) <= {STATE}
    done = make_worker(opened).run_one()
    assert (done.number, done.state) == (1, TrialState.COMPLETE)
    assert done.params == cut.params == {"model.unet.width": 4, "optimizer.adam.lr": 0.02}
    assert trial_records.count_finished(opened.study.trials) == 1
    assert not (opened.folder / "trials" / "0").exists()
    assert [int(row["epoch"]) for row in read_history(opened, 1)] == [1, 2]
    # Interrupted again, it still names the first attempt.
    queue(opened, lr=0.03)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_worker(opened, Interrupting(at)).run_one()
    again = opened.study.trials[-1].user_attrs
    assert (
        again[trial_records.TrialAttr.REQUEUED_FROM],
        again[trial_records.TrialAttr.ATTEMPTS],
    ) == (2, [2, 3])


def test_interrupt_after_the_end_changes_nothing(opened):
    class Interrupted(TrialLeases):
        def finish(self, *args):
            assert super().finish(*args)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_worker(opened, leases=Interrupted(opened.study)).run_one()
    (done,) = opened.study.trials
    assert done.state == TrialState.COMPLETE
    assert {WEIGHTS, HISTORY} <= set(opened.artifact_store.list_files(0))


def test_queued_parameters_survive_a_loss_before_sampling(opened):
    queue(opened, width=7, lr=0.05)
    worker = make_worker(opened)
    claim = worker.claim()
    assert worker.leases.requeue(claim, trial_records.EndReason.LOST) == 1
    again = worker.run_one()
    assert again.params == {"model.unet.width": 7, "optimizer.adam.lr": 0.05}
    assert again.user_attrs[trial_records.TrialAttr.REQUEUED_FROM] == claim.number


def test_trial_lost_before_sampling_is_closed(opened):
    worker = make_worker(opened)
    assert worker.leases.requeue(worker.claim(), trial_records.EndReason.LOST) is None
    (closed,) = opened.study.trials
    assert trial_records.state_of(closed) == "closed"


# --- suspended and resumed trials --------------------------------------------------------------

#: Several steps per epoch, so that a training can be suspended within one.
LONG = {
    "budget.epochs": 5,
    "fixed.batch_size": 4,
    "search.model": {"unet": {"width": [4, 128], "depth": 1}},
}
WAITING_WIDTH = FAILURE_WIDTHS["waits for suspend"]
#: Grace period in seconds; heartbeats are sent six times as often.
GRACE_S = 3.0


class CallingListener(RecordingListener):
    """Calls a function when an epoch of a trial has ended."""

    def __init__(self, number: int, epoch: int, call):
        super().__init__()
        self.when, self.call = (number, epoch), call

    def epoch_ended(self, number, record):
        super().epoch_ended(number, record)
        if (number, record.epoch) == self.when:
            self.call()


@pytest.fixture
def long(tiny_data, tmp_path):
    """A study whose one trial waits in its third epoch until it is suspended."""
    opened = open_tiny(tiny_data, tmp_path / "long", LONG)
    queue(opened, width=WAITING_WIDTH)
    return opened


def train_uninterrupted(tiny_data, folder) -> list[float]:
    """Return the Dice of each epoch of the same training without interruption."""
    opened = open_tiny(tiny_data, folder, LONG)
    queue(opened, width=WAITING_WIDTH)
    return list(make_worker(opened).run_one().intermediate_values.values())


def check_suspended(opened) -> None:
    """Check that trial 0 was suspended in its third epoch and requeued as trial 1."""
    cut, waiting = opened.study.trials
    assert trial_records.reason_of(cut) == trial_records.EndReason.INTERRUPTED
    assert list(cut.intermediate_values) == [1, 2]
    assert trial_records.state_of(waiting) == "waiting"
    assert waiting.user_attrs[trial_records.TrialAttr.ATTEMPTS] == [0]
    assert opened.artifact_store.list_files(0) == [STATE]
    state = torch.load(opened.artifact_store.local_path(0, STATE), weights_only=True)["state"]
    assert (len(state["history"]) + 1, state["step"]) == SUSPEND_POINT
    assert trial_records.count_finished(opened.study.trials) == 0


def check_resumed(opened, trial, expected) -> None:
    """Check that trial 1 continued trial 0 with identical results, and counts once."""
    assert (trial.number, trial.state) == (1, TrialState.COMPLETE)
    assert trial.user_attrs["resumed_at"] == 2
    assert trial.intermediate_values == dict(enumerate(expected, 1))
    assert [int(row["epoch"]) for row in read_history(opened, 1)] == [1, 2, 3, 4, 5]
    assert [float(row["dice"]) for row in read_history(opened, 1)] == expected
    assert trial.user_attrs["epochs"] == 5
    assert trial_records.count_finished(opened.study.trials) == 1
    assert opened.artifact_store.list_files(0) == []
    assert opened.artifact_store.list_files(1) == sorted([WEIGHTS, HISTORY, PICTURE])


def test_suspended_trial_resumes_within_the_epoch_with_identical_results(long, tiny_data, tmp_path):
    stopping = threading.Event()
    listener = CallingListener(0, 2, stopping.set)
    with make_worker(
        long, listener, stop_event=stopping, program=failing_training.__name__
    ) as worker:
        worker.run_one()
    check_suspended(long)
    after = RecordingListener()
    done = make_worker(open_study(long.folder), after, program=failing_training.__name__).run_one()
    assert after.epochs == [(1, 3), (1, 4), (1, 5)]
    check_resumed(long, done, train_uninterrupted(tiny_data, tmp_path / "other"))


@pytest.mark.parametrize("word", ["pause", "stop"])
def test_command_suspends_the_running_trial(long, word):
    leases = TrialLeases(long.study, grace_s=GRACE_S)

    def command():
        leases.command = word

    listener = CallingListener(0, 2, command)
    with make_worker(long, listener, leases=leases, program=failing_training.__name__) as worker:
        worker.run_one()
        assert worker.heartbeat.command == word
    check_suspended(long)


def test_trial_without_saved_state_is_requeued_from_the_start(tiny_data, tmp_path, monkeypatch):
    """It ignores the suspend message and saves no state."""
    monkeypatch.setattr(supervisor, "SUSPEND_TIMEOUT_S", 0.3)
    opened = open_tiny(tiny_data, tmp_path / "s", LONG)
    queue(opened, width=FAILURE_WIDTHS["ignores suspend"])
    stopping = threading.Event()
    stopping.set()
    with make_worker(opened, stop_event=stopping, program=failing_training.__name__) as worker:
        cut = worker.run_one()
    assert trial_records.reason_of(cut) == trial_records.EndReason.INTERRUPTED
    again = make_worker(opened).run_one()  # the real training
    assert again.state == TrialState.COMPLETE
    assert "resumed_at" not in again.user_attrs
    assert list(again.intermediate_values) == [1, 2, 3, 4, 5]


def trainings() -> list[psutil.Process]:
    """Return the children of this process's fork server."""
    servers = [p for p in psutil.Process().children() if "forkserver" in " ".join(p.cmdline())]
    return [child for server in servers for child in server.children()]


def test_expired_worker_writes_nothing_and_registers_again(long, tiny_data, tmp_path):
    others = TrialLeases(long.study, grace_s=0.0)  # every worker counts as expired
    requeued = []

    def reap():
        assert trainings()
        others.connected_since -= 1
        requeued.extend(others.reap_expired())

    listener = CallingListener(0, 2, reap)
    leases = TrialLeases(long.study, grace_s=GRACE_S)
    with make_worker(long, listener, leases=leases, program=failing_training.__name__) as worker:
        before = worker.heartbeat.worker.id
        cut = worker.run_one()
        assert requeued == [(0, 1)]
        assert wait_until(lambda: not trainings(), LONG_WAIT_S)
        assert trial_records.reason_of(cut) == trial_records.EndReason.LOST
        assert list(cut.intermediate_values) == [1, 2]
        # The successor needs the files.
        assert HISTORY in long.artifact_store.list_files(0)
        worker.context.stop_event.set()  # suspends the successor too
        claim = worker.claim()
        assert (claim.number, worker.heartbeat.worker.id != before) == (1, True)
        owner = long.study.trials[1].user_attrs["owner"]["worker"]
        assert owner == worker.heartbeat.worker.id
        assert [row.id for row in leases.list_workers() if row.trial == 1] == [owner]
        worker.run(claim)
    assert [trial_records.reason_of(t) for t in long.study.trials] == ["lost", "interrupted", None]
    assert long.study.trials[2].user_attrs[trial_records.TrialAttr.ATTEMPTS] == [0, 1]
    assert trial_records.count_finished(long.study.trials) == 0


# --- dead workers ------------------------------------------------------------------------------


def test_only_trials_of_dead_processes_are_requeued(opened):
    study = opened.study
    for i in range(4):
        queue(opened, lr=0.01 * (i + 1))
    for process in (dead_process(), current_process(), replace(dead_process(), host="elsewhere")):
        claim = claim_as(opened, process)
        load_claimed_trial(study, claim).suggest_int("model.unet.width", 4, 8, log=True)
        opened.artifact_store.local_path(claim.number, HISTORY).write_text("")
    study.ask()  # without a lease
    opened.artifact_store.local_path(3, HISTORY).write_text("")
    leases = TrialLeases(study)
    assert leases.reap_expired() == [(0, 4), (3, 5)]
    states = [trial_records.state_of(t) for t in study.trials]
    assert states == ["closed", "running", "running", "closed", "waiting", "waiting"]
    assert [t.user_attrs[trial_records.TrialAttr.REQUEUED_FROM] for t in study.trials[4:]] == [0, 3]
    assert leases.reap_expired() == []
    # All queued parameters are repeated, sampled or not.
    worker = make_worker(opened)
    assert worker.run_one().params == {"model.unet.width": 4, "optimizer.adam.lr": 0.01}
    assert worker.run_one().params == {"model.unet.width": 4, "optimizer.adam.lr": 0.04}
    # The files of a lost trial are deleted when its successor starts.
    assert {p.name for p in (opened.folder / "trials").glob("[0-9]*")} == {"1", "2", "4", "5"}


def test_duplicate_of_a_lost_trial_is_closed(opened):
    queue(opened)
    claim = claim_as(opened, dead_process())
    queue(opened)
    assert TrialLeases(opened.study).reap_expired() == [(claim.number, 2)]
    worker = make_worker(opened)
    states = [trial_records.state_of(worker.run_one()) for _ in range(2)]
    assert states == ["complete", "closed"]
    assert trial_records.count_finished(opened.study.trials) == 1


def test_trial_lost_too_often_fails(opened):
    leases, process = TrialLeases(opened.study), dead_process()
    for i in range(MAX_LOSSES + 1):
        suggest(load_claimed_trial(opened.study, claim_as(opened, process)), opened.spec.space)
        assert leases.reap_expired() == [(i, i + 1 if i < MAX_LOSSES else None)]
    trials = trial_records.all_trials(opened.study)
    assert [trial_records.state_of(t) for t in trials] == ["closed"] * MAX_LOSSES + ["failed"]
    assert len({str(t.params) for t in trials}) == 1
    assert f"{MAX_LOSSES + 1} times" in trials[-1].user_attrs["message"]
    assert trial_records.count_finished(trials) == 1


# --- files -------------------------------------------------------------------------------------


def test_weights_of_running_trials_are_not_deleted(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 1})
    other = claim_as(opened, current_process())
    theirs = opened.artifact_store.local_path(other.number, WEIGHTS)
    theirs.write_bytes(b"")
    worker = make_worker(opened)
    for i in range(KEEP_BEST + 1):
        queue(opened, lr=0.01 * (i + 1))
        worker.run_one()
        assert theirs.exists()
    assert worker.leases.finish(other, TrialState.COMPLETE, 0.0)
    worker.run_one()
    assert not theirs.exists()  # it has ended and is the worst


def test_missing_picture_costs_no_trial(opened, monkeypatch):
    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr("search.workers.worker.delete_old_pictures", fail)
    place = opened.artifact_store.local_path(0, PICTURE)
    place.mkdir()  # the child cannot put its picture there
    done = make_worker(opened).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.value is not None
    assert not list(place.iterdir())


def test_trial_suspended_after_the_pruning_decision_is_pruned(tiny_data, tmp_path, monkeypatch):
    """The suspend message crossed its last epoch; the trial must not be requeued."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 3})
    opened.study.pruner = ThresholdPruner(lower=2.0)
    real = trial_runner.supervise_in_parts

    def suspend_late(*args):
        outcome = real(*args)
        assert isinstance(outcome, Trained)
        return Suspended(1)

    monkeypatch.setattr(trial_runner, "supervise_in_parts", suspend_late)
    queue(opened)
    done = make_worker(opened).run_one()
    assert (done.state, list(done.intermediate_values)) == (TrialState.PRUNED, [1])
    assert len(opened.study.trials) == 1
    assert trial_records.count_finished(opened.study.trials) == 1


def test_files_deleted_by_the_next_worker_mean_a_lost_lease(tiny_data, tmp_path, monkeypatch):
    """The worker was frozen while its trial was requeued and its files were deleted."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 2})
    queue(opened)
    worker, real = make_worker(opened), trial_runner.supervise_in_parts

    def lose(*args):
        outcome = real(*args)
        claim = worker.context.heartbeat._claim
        TrialLeases(opened.study).requeue(claim, EndReason.LOST)
        opened.artifact_store.delete_trial(claim.number)
        return outcome

    monkeypatch.setattr(trial_runner, "supervise_in_parts", lose)
    worker.run_one()
    states = [trial_records.state_of(t) for t in opened.study.trials]
    assert states[1:] == ["waiting"]
    assert trial_records.count_finished(opened.study.trials) == 0


def test_discarded_upload_is_deleted_without_waiting():
    uploaded, deleted = threading.Event(), threading.Event()

    class SlowStore:
        is_local = False

        def put(self, number, name):
            assert uploaded.wait(30)

        def delete(self, number, name):
            assert uploaded.is_set()
            assert (number, name) == (7, STATE)
            deleted.set()

    uploader = StateUploader(SlowStore(), 7)
    uploader.discard()  # no upload
    uploader.start()
    uploader.discard()
    assert not deleted.is_set()
    uploaded.set()
    assert deleted.wait(30)
