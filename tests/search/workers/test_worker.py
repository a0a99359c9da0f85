"""One trial's life: claimed, trained in a child process, reported, told; or cut off."""

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import fields, replace

import psutil
import pytest
import torch
from optuna.pruners import ThresholdPruner
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.metrics import METRICS
from lesionseg.training import checkpoint
from lesionseg.training.types import EpochRecord
from search.monitoring import notes
from search.storage import trial_records
from search.storage.study_rows import MAX_LOSSES
from search.storage.lease_types import Claim
from search.storage.leases import TrialLeases
from search.storage.process_id import ProcessId, current_process
from search.storage.retention import PICTURE
from search.study.opening import open_study
from search.study.pruners import PRUNERS
from search.study.suggest import suggest
from search.trial_process import supervisor
from search.trial_process.protocol import Suspended, Trained
from search.trial_process.slot import Slot
from search.workers import trial_runner
from search.workers.worker import HISTORY, KEEP_BEST, STATE, WEIGHTS, load_claimed_trial
from tests.conftest import write_folder
from tests.search import failing_training
from tests.search.failing_training import FAILURE_WIDTHS, SUSPEND_POINT
from tests.search.helpers import (
    LONG_WAIT_S,
    SLOT,
    RecordingListener,
    open_tiny,
    queue,
    wait_until,
    make_worker,
)


@pytest.fixture
def opened(tiny_data, tmp_path):
    return open_tiny(tiny_data, tmp_path / "s")


def dead() -> ProcessId:
    """A process that has ended."""
    process = subprocess.Popen(["true"])
    since = psutil.Process(process.pid).create_time()
    process.wait()
    return replace(current_process(), pid=process.pid, since=since)


def claimed_by(opened, who: ProcessId) -> Claim:
    """A trial in the hands of somebody else."""
    leases = TrialLeases(opened.study)
    claim = leases.claim(leases.register_worker(SLOT, who), bounded=False)
    assert isinstance(claim, Claim)
    return claim


def rows_of(opened, number: int) -> list[dict[str, str]]:
    """A trial's history."""
    with (opened.folder / "trials" / str(number) / HISTORY).open(newline="") as file:
        return list(csv.DictReader(file))


# --- a trial that runs its course --------------------------------------------------------------


def test_a_complete_trial_is_on_record_with_all_that_is_said_of_it(opened):
    heard = RecordingListener()
    queue(opened)
    worker = make_worker(opened, heard)
    done = worker.run_one()
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
    assert attrs["owner"]["worker"] == worker.heartbeat.row.id
    assert attrs["owner"]["pid"] == os.getpid()
    assert (attrs["owner"]["device"], attrs["owner"]["threads"]) == ("cpu", 1)
    assert attrs["started_at"] < attrs["ended_at"] < attrs["started_at"] + 300
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
    done = make_worker(opened).run_one()
    place = opened.folder / "trials" / "0"
    rows = rows_of(opened, 0)
    plain = [f.name for f in fields(EpochRecord) if f.name != "metrics"]
    assert list(rows[0]) == [*plain, *METRICS]
    assert [int(r["epoch"]) for r in rows] == [1, 2]
    assert [float(r["dice"]) for r in rows] == list(done.intermediate_values.values())
    _, config = checkpoint.load(place / "model.safetensors")
    assert config.digest() == done.user_attrs["digest"]


def test_weights_are_kept_of_the_best_trials_only(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 1})
    worker = make_worker(opened)
    for i in range(KEEP_BEST + 2):
        queue(opened, lr=0.01 * (i + 1))
        worker.run_one()
    kept = {int(p.parent.name) for p in (opened.folder / "trials").glob("*/model.safetensors")}
    assert kept == {t.number for t in trial_records.rank_trials(opened.study.trials)[:KEEP_BEST]}
    # Histories are small, and kept of all.
    assert len(list((opened.folder / "trials").glob("*/history.csv"))) == KEEP_BEST + 2


def test_the_same_configuration_gives_the_same_value_on_a_cpu(tiny_data, tmp_path):
    values = []
    for name in ("a", "b"):
        opened = open_tiny(tiny_data, tmp_path / name)
        queue(opened)
        values.append(make_worker(opened).run_one().intermediate_values)
    assert values[0] == values[1]


def test_early_stopping_is_a_complete_trial_with_its_reason(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.patience": 1, "budget.epochs": 50})
    done = make_worker(opened).run_one()
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
    done = make_worker(opened).run_one()
    assert done.state == TrialState.PRUNED
    assert list(done.intermediate_values) == [1, 2]
    assert done.user_attrs["epochs"] == 2
    assert "reason" not in done.user_attrs
    assert not (opened.folder / "trials" / "1" / "model.safetensors").exists()
    assert trial_records.state_of(done) == "pruned"


def test_a_trial_is_never_pruned_after_its_last_epoch(tiny_data, tmp_path):
    changes = {"pruner": {"name": "median", "min_epochs": 2, "startup": 1}}
    opened = open_tiny(tiny_data, tmp_path / "s", changes)
    rival = opened.study.ask()
    for epoch in (1, 2):
        rival.report(1.0, epoch)
    opened.study.tell(rival, 1.0)
    assert make_worker(opened).run_one().state == TrialState.COMPLETE


def test_when_the_time_is_over_the_first_complete_trial_is_let_through(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 3})
    worker = make_worker(opened, deadline=lambda: True)
    first, second = worker.run_one(), worker.run_one()
    assert first.state == TrialState.COMPLETE
    assert second.state == TrialState.PRUNED
    assert second.user_attrs["reason"] == "time"
    assert list(second.intermediate_values) == [1]


# --- trials that are skipped -------------------------------------------------------------------


def test_a_configuration_is_not_trained_twice(opened):
    heard = RecordingListener()
    worker = make_worker(opened, heard)
    queue(opened)
    queue(opened)
    first, second = worker.run_one(), worker.run_one()
    assert second.state == TrialState.FAIL
    assert second.user_attrs["reason"] == trial_records.EndReason.DUPLICATE
    assert second.user_attrs["duplicate_of"] == first.number
    assert second.user_attrs["message"] == "the same configuration as trial 0"
    assert second.intermediate_values == {}
    assert heard.started == [0]
    assert trial_records.count_finished(opened.study.trials) == 1


def test_a_network_that_is_too_large_is_refused_before_training(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 0.001}})
    done = make_worker(opened).run_one()
    assert done.state == TrialState.PRUNED
    assert done.user_attrs["reason"] == trial_records.EndReason.CONSTRAINT
    assert done.user_attrs["message"].endswith("constraints.max_params_m is 0.001")
    assert done.intermediate_values == {}
    assert done.constraints["max_params_m"] == pytest.approx(
        done.user_attrs["params"] / 1e6 - 0.001
    )
    assert trial_records.state_of(done) == "skipped"
    assert trial_records.count_finished([done]) == 0


def test_a_network_that_is_small_enough_is_trained_and_its_slack_is_on_record(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"constraints": {"max_params_m": 1}})
    done = make_worker(opened).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.constraints["max_params_m"] == pytest.approx(done.user_attrs["params"] / 1e6 - 1)


def test_a_configuration_that_cannot_be_read_is_skipped_with_the_reason(opened):
    """As one of another version of lesionsearch that was queued whole."""
    worker = make_worker(opened)
    worker.leases.enqueue([({}, {trial_records.TrialAttr.FIXED_CONFIG: {"bach_size": 3}})])
    done = worker.run_one()
    assert trial_records.state_of(done) == "skipped"
    assert trial_records.reason_of(done) == trial_records.EndReason.CONFIG
    assert "unknown key 'bach_size'" in done.user_attrs["message"]


# --- trials that fail --------------------------------------------------------------------------


def test_a_training_that_breaks_is_recorded_and_costs_one_trial(tiny_data, tmp_path):
    """The cache goes away under a running study."""
    data = write_folder(tmp_path / "data", 12)
    opened = open_tiny(data, tmp_path / "s")
    gone = opened.cache.path.rename(tmp_path / "hidden")
    worker = make_worker(opened)
    done = worker.run_one()
    assert done.state == TrialState.FAIL
    assert done.user_attrs["reason"] == "data"
    assert done.user_attrs["message"].startswith("FileNotFoundError: ")
    assert "Traceback" in done.user_attrs["trace"]
    assert trial_records.count_finished([done]) == 1
    shutil.move(gone, opened.cache.path)
    assert worker.run_one().state == TrialState.COMPLETE


def test_a_child_that_is_killed_costs_one_trial_with_the_reason(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 50})

    class Killing(RecordingListener):
        def epoch_ended(self, number, record):
            super().epoch_ended(number, record)
            if number == 0 and record.epoch == 3:
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if process.ppid() != os.getpid():  # not the server that forks them
                            process.send_signal(signal.SIGKILL)
                            process.wait(5)

    done = make_worker(opened, Killing()).run_one()
    assert done.state == TrialState.FAIL
    assert done.user_attrs["reason"] == "crash"
    assert "SIGKILL (out of memory?)" in done.user_attrs["message"]
    assert list(done.intermediate_values) == [1, 2, 3]


def test_a_device_that_is_not_there_fails_the_trial(opened):
    done = make_worker(opened, slot=Slot("cuda:63", 1)).run_one()
    assert done.user_attrs["reason"] == "config"
    assert "cuda:63" in done.user_attrs["message"]


# --- trials that are cut off -------------------------------------------------------------------


class Interrupting(RecordingListener):
    """Ctrl-C when the trial begins, or after its first epoch."""

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
        make_worker(opened, Interrupting(at)).run_one()
    cut, waiting = opened.study.trials
    assert trial_records.state_of(cut) == "skipped"
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
    assert [int(row["epoch"]) for row in rows_of(opened, 1)] == [1, 2]
    # Cut off again, it still points at the first.
    queue(opened, lr=0.03)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_worker(opened, Interrupting(at)).run_one()
    again = opened.study.trials[-1].user_attrs
    assert (
        again[trial_records.TrialAttr.REQUEUED_FROM],
        again[trial_records.TrialAttr.ATTEMPTS],
    ) == (2, [2, 3])


def test_an_interruption_after_a_trial_was_told_takes_nothing_of_it_away(opened):
    class Interrupted(TrialLeases):
        def finish(self, *args):
            assert super().finish(*args)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_worker(opened, leases=Interrupted(opened.study)).run_one()
    (done,) = opened.study.trials
    assert done.state == TrialState.COMPLETE
    assert {WEIGHTS, HISTORY} <= set(opened.artifact_store.list_files(0))


def test_a_queued_trial_that_is_cut_off_before_it_drew_keeps_its_parameters(opened):
    queue(opened, width=7, lr=0.05)
    worker = make_worker(opened)
    claim = worker.claim()
    assert worker.leases.requeue(claim, trial_records.EndReason.LOST) == 1
    again = worker.run_one()
    assert again.params == {"model.unet.width": 7, "optimizer.adam.lr": 0.05}
    assert again.user_attrs[trial_records.TrialAttr.REQUEUED_FROM] == claim.number


def test_a_trial_that_is_cut_off_before_it_drew_anything_is_closed_and_not_repeated(opened):
    worker = make_worker(opened)
    assert worker.leases.requeue(worker.claim(), trial_records.EndReason.LOST) is None
    (closed,) = opened.study.trials
    assert trial_records.state_of(closed) == "skipped"


def test_a_trial_that_reached_its_end_is_not_queued_again(opened):
    worker = make_worker(opened)
    claim = worker.claim()
    assert worker.run(claim).state == TrialState.COMPLETE
    assert worker.leases.requeue(claim, trial_records.EndReason.INTERRUPTED) is None
    assert [t.state for t in opened.study.trials] == [TrialState.COMPLETE]


# --- trials that are put down, and gone on with ------------------------------------------------

#: As many steps an epoch as there are images, so that there is a middle to be hit.
LONG = {
    "budget.epochs": 5,
    "fixed.batch_size": 4,
    "search.model": {"unet": {"width": [4, 128], "depth": 1}},
}
WAITS = FAILURE_WIDTHS["waits for suspend"]
#: Seconds: orders are heard every sixth of it, and a machine may be busy for longer than one.
GRACE = 3.0


class Calling(RecordingListener):
    """Does something when an epoch of a trial has ended."""

    def __init__(self, number: int, epoch: int, call):
        super().__init__()
        self.when, self.call = (number, epoch), call

    def epoch_ended(self, number, record):
        super().epoch_ended(number, record)
        if (number, record.epoch) == self.when:
            self.call()


@pytest.fixture
def long(tiny_data, tmp_path):
    """A study whose one trial waits in the middle of its third epoch until it is put down."""
    opened = open_tiny(tiny_data, tmp_path / "long", LONG)
    queue(opened, width=WAITS)
    return opened


def undisturbed(tiny_data, folder) -> list[float]:
    """Every epoch's Dice of the same training, left in peace."""
    opened = open_tiny(tiny_data, folder, LONG)
    queue(opened, width=WAITS)
    return list(make_worker(opened).run_one().intermediate_values.values())


def check_put_down(opened) -> None:
    """Trial 0 has been put down in the middle of its third epoch and is queued as trial 1."""
    cut, waiting = opened.study.trials
    assert trial_records.reason_of(cut) == trial_records.EndReason.INTERRUPTED
    assert list(cut.intermediate_values) == [1, 2]
    assert trial_records.state_of(waiting) == "waiting"
    assert waiting.user_attrs[trial_records.TrialAttr.ATTEMPTS] == [0]
    assert opened.artifact_store.list_files(0) == [STATE]
    state = torch.load(opened.artifact_store.local_path(0, STATE), weights_only=True)["state"]
    assert (len(state["history"]) + 1, state["step"]) == SUSPEND_POINT
    assert trial_records.count_finished(opened.study.trials) == 0


def check_gone_on(opened, done, expected) -> None:
    """Trial 1 went on where trial 0 was put down, to the last digit, and counts once."""
    assert (done.number, done.state) == (1, TrialState.COMPLETE)
    assert done.user_attrs["resumed_at"] == 2
    assert done.intermediate_values == dict(enumerate(expected, 1))
    assert [int(row["epoch"]) for row in rows_of(opened, 1)] == [1, 2, 3, 4, 5]
    assert [float(row["dice"]) for row in rows_of(opened, 1)] == expected
    assert done.user_attrs["epochs"] == 5
    assert trial_records.count_finished(opened.study.trials) == 1
    assert opened.artifact_store.list_files(0) == []
    assert opened.artifact_store.list_files(1) == sorted([WEIGHTS, HISTORY, PICTURE])


def test_a_trial_that_is_put_down_in_an_epoch_goes_on_from_there_to_the_last_digit(
    long, tiny_data, tmp_path
):
    stopping = threading.Event()
    heard = Calling(0, 2, stopping.set)
    with make_worker(long, heard, stopping=stopping, program=failing_training.__name__) as worker:
        worker.run_one()
    check_put_down(long)
    after = RecordingListener()
    done = make_worker(open_study(long.folder), after, program=failing_training.__name__).run_one()
    assert after.epochs == [(1, 3), (1, 4), (1, 5)]
    check_gone_on(long, done, undisturbed(tiny_data, tmp_path / "other"))


@pytest.mark.parametrize("word", ["pause", "stop"])
def test_a_command_puts_the_trial_at_work_down(long, word):
    leases = TrialLeases(long.study, grace_s=GRACE)

    def command():
        leases.command = word

    heard = Calling(0, 2, command)
    with make_worker(long, heard, leases=leases, program=failing_training.__name__) as worker:
        worker.run_one()
        assert worker.heartbeat.command == word
    check_put_down(long)


def test_a_trial_that_cannot_save_its_state_is_queued_again_from_its_beginning(
    tiny_data, tmp_path, monkeypatch
):
    """It does not hear that it is to be put down, and no state of it lies anywhere."""
    monkeypatch.setattr(supervisor, "SUSPEND_TIMEOUT_S", 0.3)
    opened = open_tiny(tiny_data, tmp_path / "s", LONG)
    queue(opened, width=FAILURE_WIDTHS["ignores suspend"])
    stopping = threading.Event()
    stopping.set()
    with make_worker(opened, stopping=stopping, program=failing_training.__name__) as worker:
        cut = worker.run_one()
    assert trial_records.reason_of(cut) == trial_records.EndReason.INTERRUPTED
    again = make_worker(opened).run_one()  # the real training
    assert again.state == TrialState.COMPLETE
    assert "resumed_at" not in again.user_attrs
    assert list(again.intermediate_values) == [1, 2, 3, 4, 5]


def trainings() -> list[psutil.Process]:
    """What this process's fork server has started."""
    servers = [p for p in psutil.Process().children() if "forkserver" in " ".join(p.cmdline())]
    return [child for server in servers for child in server.children()]


def test_a_worker_that_was_taken_for_dead_tells_nothing_and_comes_back_under_a_new_name(
    long, tiny_data, tmp_path
):
    others = TrialLeases(long.study, grace_s=0.0)  # in their eyes everyone is silent for too long
    handed_on = []

    def reap():
        assert trainings()
        assert wait_until(lambda: others.healthy > 0, LONG_WAIT_S)
        handed_on.extend(others.reap())

    heard = Calling(0, 2, reap)
    leases = TrialLeases(long.study, grace_s=GRACE)
    with make_worker(long, heard, leases=leases, program=failing_training.__name__) as worker:
        before = worker.heartbeat.row.id
        cut = worker.run_one()
        assert handed_on == [(0, 1)]
        assert wait_until(lambda: not trainings(), LONG_WAIT_S)
        assert trial_records.reason_of(cut) == trial_records.EndReason.LOST
        assert list(cut.intermediate_values) == [1, 2]
        # What lies there is for whoever goes on with it.
        assert HISTORY in long.store.list_files(0)
        worker.stopping.set()  # so that the successor, which waits at no state, is put down too
        claim = worker.claim()
        assert (claim.number, worker.heartbeat.row.id != before) == (1, True)
        owner = long.study.trials[1].user_attrs["owner"]["worker"]
        assert owner == worker.heartbeat.row.id
        assert [row.id for row in leases.list_workers() if row.trial == 1] == [owner]
        worker.run(claim)
    assert [trial_records.reason_of(t) for t in long.study.trials] == ["lost", "interrupted", None]
    assert long.study.trials[2].user_attrs[trial_records.TrialAttr.ATTEMPTS] == [0, 1]
    assert trial_records.count_finished(long.study.trials) == 0


# --- workers that are gone ---------------------------------------------------------------------


def test_the_trials_of_dead_processes_go_back_to_the_queue_and_others_do_not(opened):
    study = opened.study
    for i in range(4):
        queue(opened, lr=0.01 * (i + 1))
    for who in (dead(), current_process(), replace(dead(), host="elsewhere")):
        claim = claimed_by(opened, who)
        load_claimed_trial(study, claim).suggest_int("model.unet.width", 4, 8, log=True)
        opened.artifact_store.local_path(claim.number, HISTORY).write_text("")
    study.ask()  # nobody's: not claimed through the leases
    opened.artifact_store.local_path(3, HISTORY).write_text("")
    leases = TrialLeases(study)
    assert leases.reap_expired() == [(0, 4), (3, 5)]
    states = [trial_records.state_of(t) for t in study.trials]
    assert states == ["skipped", "running", "running", "skipped", "waiting", "waiting"]
    assert [t.user_attrs[trial_records.TrialAttr.REQUEUED_FROM] for t in study.trials[4:]] == [0, 3]
    assert leases.reap_expired() == []
    # What was queued for it is repeated in full, drawn or not.
    worker = make_worker(opened)
    assert worker.run_one().params == {"model.unet.width": 4, "optimizer.adam.lr": 0.01}
    assert worker.run_one().params == {"model.unet.width": 4, "optimizer.adam.lr": 0.04}
    # What lay there of it goes when its successor begins.
    assert {p.name for p in (opened.folder / "trials").glob("[0-9]*")} == {"1", "2", "4", "5"}


def test_a_double_of_a_trial_that_was_lost_is_recognised(opened):
    queue(opened)
    claim = claimed_by(opened, dead())
    queue(opened)
    assert TrialLeases(opened.study).reap_expired() == [(claim.number, 2)]
    worker = make_worker(opened)
    states = [trial_records.state_of(worker.run_one()) for _ in range(2)]
    assert states == ["complete", "skipped"]
    assert trial_records.count_finished(opened.study.trials) == 1


def test_a_trial_that_keeps_killing_its_worker_fails_for_good(opened):
    leases, who = TrialLeases(opened.study), dead()
    for i in range(MAX_LOSSES + 1):
        suggest(load_claimed_trial(opened.study, claimed_by(opened, who)), opened.spec.space)
        assert leases.reap_expired() == [(i, i + 1 if i < MAX_LOSSES else None)]
    known = trial_records.all_trials(opened.study)
    assert [trial_records.state_of(t) for t in known] == ["skipped"] * MAX_LOSSES + ["failed"]
    assert len({str(t.params) for t in known}) == 1
    assert f"{MAX_LOSSES + 1} times" in known[-1].user_attrs["message"]
    assert trial_records.count_finished(known) == 1


def test_a_trial_of_another_host_is_lost_when_that_has_been_silent_for_too_long(opened):
    claim = claimed_by(opened, replace(dead(), host="elsewhere"))
    suggest(load_claimed_trial(opened.study, claim), opened.spec.space)
    assert TrialLeases(opened.study).reap_expired() == []
    impatient = TrialLeases(opened.study, grace_s=0.0)
    assert wait_until(lambda: impatient.healthy > 0, LONG_WAIT_S)
    assert impatient.reap() == [(claim.number, 1)]


# --- weights beside other workers' -------------------------------------------------------------


def test_weights_of_a_trial_that_is_not_told_yet_are_never_deleted(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 1})
    other = claimed_by(opened, current_process())
    theirs = opened.artifact_store.local_path(other.number, WEIGHTS)
    theirs.write_bytes(b"")
    worker = make_worker(opened)
    for i in range(KEEP_BEST + 1):
        queue(opened, lr=0.01 * (i + 1))
        worker.run_one()
        assert theirs.exists()
    assert worker.leases.finish(other, TrialState.COMPLETE, 0.0)
    worker.run_one()
    assert not theirs.exists()  # it is told, and the worst


# --- what people look at -----------------------------------------------------------------------


def test_a_picture_or_a_note_that_cannot_be_made_costs_no_trial(opened, monkeypatch):
    def broken(*_):
        raise OSError("no")

    monkeypatch.setattr("search.workers.worker.notes.trial_note_attrs", broken)
    monkeypatch.setattr("search.workers.worker.delete_old_pictures", broken)
    place = opened.artifact_store.local_path(0, PICTURE)
    place.mkdir()  # the child cannot put its picture there
    done = make_worker(opened).run_one()
    assert done.state == TrialState.COMPLETE
    assert done.value is not None
    assert not list(place.iterdir())


def test_a_failed_trial_leaves_its_note(opened):
    queue(opened, width=FAILURE_WIDTHS["segfaults"])
    done = make_worker(opened, program=failing_training.__name__).run_one()
    assert (done.state, trial_records.reason_of(done)) == (TrialState.FAIL, "crash")
    attrs = opened.study._storage.get_study_system_attrs(opened.study._study_id)
    text = group_notes(attrs)[done._trial_id][f"dashboard:{done._trial_id}:note_str:0"]
    assert text == notes.format_trial_note(done)
    assert "SIGSEGV" in text


def test_a_trial_that_was_pruned_as_it_was_to_be_put_down_is_pruned(
    tiny_data, tmp_path, monkeypatch
):
    """The word to leave crossed its last epoch on the way: it must not be queued once more."""
    opened = open_tiny(tiny_data, tmp_path / "s", {"budget.epochs": 3})
    opened.study.pruner = ThresholdPruner(lower=2.0)
    real = trial_runner.supervise

    def crossed(*args):
        end = real(*args)
        assert isinstance(end, Trained)
        return Suspended(1)

    monkeypatch.setattr(trial_runner, "supervise", crossed)
    queue(opened)
    done = make_worker(opened).run_one()
    assert (done.state, list(done.intermediate_values)) == (TrialState.PRUNED, [1])
    assert len(opened.study.trials) == 1
    assert trial_records.count_finished(opened.study.trials) == 1


def test_what_nobody_needs_is_not_waited_for_and_dropped_when_it_has_arrived():
    arrived, dropped = threading.Event(), threading.Event()

    class Slow:
        is_local = False

        def put(self, number, name):
            assert arrived.wait(30)

        def drop(self, number, name):
            assert arrived.is_set()
            assert (number, name) == (7, STATE)
            dropped.set()

    uploads = trial_runner.StateUploader(Slow(), 7)
    uploads.give_up()  # of nothing
    uploads.state()
    uploads.give_up()
    assert not dropped.is_set()
    arrived.set()
    assert dropped.wait(30)
