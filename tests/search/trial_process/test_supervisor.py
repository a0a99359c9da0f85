"""Failing trainings in real processes: the reason is recorded and the next trial starts."""

import shutil
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from optuna.trial import TrialState

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.trial_process import supervisor
from search.trial_process.protocol import JobError, ModelBuilt, StateSaved, Suspended, TrainJob
from search.trial_process.supervisor import LeaseLost, StopConditions, supervise
from tests.search import failing_training
from tests.search.failing_training import FAILURE_WIDTHS
from tests.search.helpers import SLOT, is_gone, make_worker, open_tiny, queue

pytestmark = pytest.mark.alone

#: Seconds within which the next trial's process must send its first message.
NEXT_START_S = 2.0
CHANGES = {"search.model": {"unet": {"width": [4, 128], "depth": 1}}}
#: One second, in minutes.
SECOND = 1 / 60


class Stopwatch(TrialLeases):
    """Records when each trial's network was built and when its end was written."""

    def __init__(self, study):
        super().__init__(study)
        self.built, self.finished = {}, {}

    def set_trial_attrs(self, claim, attrs):
        if "macs" in attrs:
            self.built[claim.number] = time.monotonic()
        super().set_trial_attrs(claim, attrs)

    def finish(self, claim, *args):
        self.finished[claim.number] = time.monotonic()
        return super().finish(claim, *args)


@dataclass(frozen=True)
class Case:
    """A failure, its recorded reason and the settings that detect it."""

    failure: str
    reason: str
    message: str
    changes: dict = field(default_factory=dict)
    #: Seconds until the failure is detected.
    delay_s: float = 0.0


STALL = {"budget.stall_minutes": SECOND}
SILENT = "no step was done in 0.0166667 minutes (budget.stall_minutes)"
CASES = [
    Case("segfaults", "crash", "ended by SIGSEGV"),
    Case("aborts", "crash", "ended by SIGABRT"),
    Case("is killed", "crash", "ended by SIGKILL (out of memory?)"),
    Case("exits", "crash", "ended with exit code 3 and without a result"),
    Case("is stopped", "timeout", SILENT, STALL, 1.0),
    Case("sleeps", "timeout", SILENT, STALL, 1.0),
    Case("never finishes", "timeout", "it took longer than 0.0166667 minutes",
         {"budget.trial_minutes": SECOND}, 1.0),
    Case("allocates", "oom", "GB of host memory; the limit is"),
]  # fmt: skip


def read_note(opened, number: int, name: str) -> float:
    """Return a value that a trial's process wrote."""
    return float((opened.folder / "trials" / str(number) / name).read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.failure)
def test_failure_costs_one_trial_and_the_next_one_starts_immediately(tiny_data, tmp_path, case):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES | case.changes)
    watch = Stopwatch(opened.study)
    with make_worker(opened, leases=watch, program=failing_training.__name__) as worker:
        queue(opened)
        assert worker.run_one().state == TrialState.COMPLETE
        # More than a process uses before it trains, and less than "allocates" uses.
        room = read_note(opened, 0, "base") + 1.1 * failing_training.LARGE
        worker.context.slot = replace(SLOT, memory_gb=room / 1e9)
        queue(opened, width=FAILURE_WIDTHS[case.failure])
        queue(opened, width=5)
        broken, after = worker.run_one(), worker.run_one()
    assert broken.state == TrialState.FAIL
    assert trial_records.reason_of(broken) == case.reason
    assert case.message in broken.user_attrs["message"]
    assert broken.intermediate_values == {}
    assert after.state == TrialState.COMPLETE
    assert trial_records.count_finished(opened.study.trials) == 3
    failed_at = read_note(opened, 1, "failed_at") + case.delay_s
    assert watch.built[2] - failed_at < NEXT_START_S


def test_next_trial_starts_after_divergence_and_after_an_invalid_configuration(tiny_data, tmp_path):
    """The real training. Pixels of NaN make it diverge; no learning rate surely does."""
    opened = open_tiny(tiny_data, tmp_path / "s")
    shutil.copytree(opened.cache.path, tmp_path / "cache")
    pixels = np.load(opened.cache.path / "images.npy").astype(np.float32)
    np.save(tmp_path / "cache" / "images.npy", np.full_like(pixels, np.nan))
    watch = Stopwatch(opened.study)
    with make_worker(opened, leases=watch) as worker:
        data = worker.context.data
        worker.context.data = replace(data, cache=tmp_path / "cache")
        diverged = worker.run_one()
        worker.context.data = data
        small = replace(
            TrialConfig(), model=ComponentConfig("unet", {"width": 4, "depth": 1}), image_size=16
        )
        unknown = small.to_dict() | {"loss": {"nothing": {}}}
        worker.leases.enqueue([({}, {trial_records.TrialAttr.FIXED_CONFIG: unknown})])
        unbuilt, after = worker.run_one(), worker.run_one()
    assert trial_records.reason_of(diverged) == "diverged"
    assert diverged.user_attrs["message"] == "the training loss became nan in epoch 1"
    assert trial_records.state_of(diverged) == "failed"
    assert trial_records.reason_of(unbuilt) == trial_records.EndReason.CONFIG
    assert "unknown loss 'nothing'" in unbuilt.user_attrs["message"]
    assert after.state == TrialState.COMPLETE
    assert watch.finished[1] - watch.finished[0] < NEXT_START_S
    assert watch.built[2] - watch.finished[1] < NEXT_START_S


# --- out of memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "parts", "state"),
    [
        ("fits in halves", 2, "complete"),
        ("fits in quarters", 4, "complete"),
        ("never fits", 8, "failed"),
    ],
)
def test_batches_are_computed_in_more_parts_after_out_of_memory(
    tiny_data, tmp_path, failure, parts, state
):
    """A batch of 8; the configuration stays the same."""
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    queue(opened, width=FAILURE_WIDTHS[failure])
    with make_worker(opened, program=failing_training.__name__) as worker:
        trial = worker.run_one()
    attrs = trial.user_attrs
    assert (trial_records.state_of(trial), attrs["accumulation_factor"]) == (state, parts)
    assert attrs["oom_message"] == f"no room for a batch in {parts // 2} parts"
    config = TrialConfig.from_dict(attrs["config"])
    assert config.digest() == attrs["digest"]
    assert config.batch_size == 8
    if state == "failed":
        assert trial_records.reason_of(trial) == "oom"
        assert attrs["message"] == "no room for a batch in 8 parts"
    else:
        assert list(trial.intermediate_values) == [1, 2]
    assert trial_records.count_finished(opened.study.trials) == 1


# --- supervision without a worker --------------------------------------------------------------


@pytest.fixture
def job(tiny_data, tmp_path):
    """A job of the failing training program."""
    opened = open_tiny(tiny_data, tmp_path / "s")
    return TrainJob(
        TrialConfig().to_dict(),
        opened.cache.path,
        opened.trial_data.train,
        opened.trial_data.val,
        SLOT,
        weights_path=tmp_path / "model.safetensors",
        program=failing_training.__name__,
    )


def with_failure(job, failure: str) -> TrainJob:
    model = {"unet": {"width": FAILURE_WIDTHS[failure]}}
    return replace(job, config=job.config | {"model": model})


def test_process_is_killed_when_the_lease_is_lost(job):
    lost, messages = threading.Event(), []

    def on_message(message):
        messages.append(message)
        lost.set()
        return False

    conditions = StopConditions(lease_lost=lost.is_set)
    with pytest.raises(LeaseLost):
        supervise(with_failure(job, "sleeps"), on_message, conditions)
    assert messages == [ModelBuilt(10, 20)]
    assert is_gone(int(job.weights_path.with_name("pid").read_text()))


def test_process_that_does_not_suspend_is_killed_after_the_timeout(job, monkeypatch):
    monkeypatch.setattr(supervisor, "SUSPEND_TIMEOUT_S", 0.5)
    start = time.monotonic()
    conditions = StopConditions(suspend=lambda: True)
    job = with_failure(job, "ignores suspend")
    assert supervise(job, lambda _: False, conditions) == Suspended(0, saved=False)
    assert time.monotonic() - start < 0.5 + NEXT_START_S


class Silent:
    """A process that sends nothing more."""

    def suspend(self):
        pass


@pytest.mark.parametrize(
    ("parameters", "saved_in", "timeout"),
    [
        (1_000_000, None, 7.2),  # estimated: 20 bytes at 200 MB/s
        (130_000_000, None, 25.0),
        (130_000_000, 2.0, 11.0),  # measured
        (1_000_000, 60.0, 25.0),
    ],
)
def test_time_to_save_follows_the_size_of_the_state(monkeypatch, parameters, saved_in, timeout):
    now = 0.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    process = Silent()
    process.reply = lambda stop: None
    one = supervisor.Supervisor(process, lambda _: False, StopConditions(suspend=lambda: True))
    one._handle(ModelBuilt(parameters, 1))
    if saved_in is not None:
        one._handle(StateSaved(3, saved_in))
    assert one._check() is None
    now = timeout - 0.1
    assert one._check() is None
    now = timeout + 0.1
    assert one._check() == Suspended(0 if saved_in is None else 3, saved=False)


@pytest.mark.parametrize(
    "conditions",
    [StopConditions(), StopConditions(total_s=600, stall_s=600, memory_bytes=10**12)],
)
def test_limits_that_are_not_reached_have_no_effect(job, conditions):
    outcome = supervise(with_failure(job, "exits"), lambda _: False, conditions)
    assert isinstance(outcome, JobError) and outcome.reason == "crash"
