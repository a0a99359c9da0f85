"""Trainings that go wrong in real processes: each leaves its reason, and the next one starts."""

import shutil
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.storage import trial_records
from search.storage.leases import TrialLeases
from search.trial_process import supervisor
from search.trial_process.protocol import JobError, ModelBuilt, Suspended, TrainJob
from search.trial_process.supervisor import LeaseLost, Limits, StopConditions, supervise
from tests.search import failing_training
from tests.search.failing_training import FAILURE_WIDTHS
from tests.search.helpers import SLOT, is_gone, open_tiny, queue, worker_of

pytestmark = pytest.mark.alone

#: Seconds within which the next trial's child is to have said its first word.
PROMISED = 2.0
CHANGES = {"search.model": {"unet": {"width": [4, 128], "depth": 1}}}
#: Of a second.
BRIEF = 1 / 60


class Stopwatch(TrialLeases):
    """A leases that keeps when each trial's network was built, and when its end was told."""

    def __init__(self, study):
        super().__init__(study)
        self.built, self.told = {}, {}

    def note(self, claim, attrs):
        if "macs" in attrs:
            self.built[claim.number] = time.monotonic()
        super().note(claim, attrs)

    def finish(self, claim, *args):
        self.told[claim.number] = time.monotonic()
        return super().finish(claim, *args)


@dataclass(frozen=True)
class Case:
    """What goes wrong, what is recorded of it, and what is to be set so that it is noticed."""

    way: str
    reason: str
    message: str
    changes: dict = field(default_factory=dict)
    #: Seconds that the trouble lasts before it is one.
    lasts: float = 0.0


STALL = {"budget.stall_minutes": BRIEF}
SILENT = "no step was done in 0.0166667 minutes (budget.stall_minutes)"
CASES = [
    Case("segfaults", "crash", "ended by SIGSEGV"),
    Case("aborts", "crash", "ended by SIGABRT"),
    Case("is killed", "crash", "ended by SIGKILL (out of memory?)"),
    Case("exits", "crash", "ended with exit code 3 and without a word"),
    Case("is stopped", "timeout", SILENT, STALL, 1.0),
    Case("sleeps", "timeout", SILENT, STALL, 1.0),
    Case("never finishes", "timeout", "it took longer than 0.0166667 minutes",
         {"budget.trial_minutes": BRIEF}, 1.0),
    Case("allocates", "oom", "GB of the host's memory; its share is"),
]  # fmt: skip


def told_by(opened, number: int, name: str) -> float:
    """What a trial's process wrote down before it went wrong."""
    return float((opened.folder / "trials" / str(number) / name).read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.way)
def test_what_goes_wrong_costs_one_trial_with_its_reason_and_the_next_one_starts_at_once(
    tiny_data, tmp_path, case
):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES | case.changes)
    watch = Stopwatch(opened.study)
    with worker_of(opened, leases=watch, program=failing_training.__name__) as worker:
        queue(opened)
        assert worker.run_one().state == TrialState.COMPLETE
        # All that a process has of its own before it trains, and a part of what it will take.
        room = told_by(opened, 0, "base") + 1.1 * failing_training.LARGE
        worker.slot = replace(SLOT, memory_gb=room / 1e9)
        queue(opened, width=FAILURE_WIDTHS[case.way])
        queue(opened, width=5)
        broken, after = worker.run_one(), worker.run_one()
    assert broken.state == TrialState.FAIL
    assert trial_records.reason_of(broken) == case.reason
    assert case.message in broken.user_attrs["message"]
    assert broken.intermediate_values == {}
    assert after.state == TrialState.COMPLETE
    assert trial_records.count_finished(opened.study.trials) == 3
    trouble = told_by(opened, 1, "trouble") + case.lasts
    assert watch.built[2] - trouble < PROMISED


def test_one_that_diverges_and_one_that_cannot_be_built_are_told_and_the_next_one_starts(
    tiny_data, tmp_path
):
    """The real training. No learning rate makes it diverge for sure; broken pixels do."""
    opened = open_tiny(tiny_data, tmp_path / "s")
    shutil.copytree(opened.cache.path, tmp_path / "cache")
    pixels = np.load(opened.cache.path / "images.npy").astype(np.float32)
    np.save(tmp_path / "cache" / "images.npy", np.full_like(pixels, np.nan))
    watch = Stopwatch(opened.study)
    with worker_of(opened, leases=watch) as worker:
        good = worker.material
        worker.material = replace(good, cache=tmp_path / "cache")
        diverged = worker.run_one()
        worker.material = good
        small = replace(TrialConfig(), model=ComponentConfig("unet", {"width": 4, "depth": 1}), image_size=16)
        unknown = small.to_dict() | {"loss": {"nothing": {}}}
        worker.leases.enqueue([({}, {trial_records.TrialAttr.FIXED_CONFIG: unknown})])
        unbuilt, after = worker.run_one(), worker.run_one()
    assert trial_records.reason_of(diverged) == "diverged"
    assert diverged.user_attrs["message"] == "the training loss became nan in epoch 1"
    assert trial_records.state_of(diverged) == "failed"
    assert trial_records.reason_of(unbuilt) == trial_records.EndReason.CONFIG
    assert "unknown loss 'nothing'" in unbuilt.user_attrs["message"]
    assert after.state == TrialState.COMPLETE
    assert watch.told[1] - watch.told[0] < PROMISED
    assert watch.built[2] - watch.told[1] < PROMISED


# --- out of memory -----------------------------------------------------------------------------


def trained(opened, way: str) -> FrozenTrial:
    """One trial whose batch is too large for the memory in this way."""
    with worker_of(opened, program=failing_training.__name__) as worker:
        queue(opened, width=FAILURE_WIDTHS[way])
        return worker.run_one()


@pytest.mark.parametrize(("way", "parts"), [("fits in halves", 2), ("fits in quarters", 4)])
def test_a_batch_that_is_too_large_is_computed_in_parts_and_is_the_same_configuration(
    tiny_data, tmp_path, way, parts
):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    done = trained(opened, way)
    assert done.state == TrialState.COMPLETE
    assert done.user_attrs["parts"] == parts
    assert done.user_attrs["spared"] == f"no room for a batch in {parts // 2} parts"
    config = TrialConfig.from_dict(done.user_attrs["config"])
    assert config.digest() == done.user_attrs["digest"]
    assert (config.batch_size, config.accumulate) == (8, 1)
    assert list(done.intermediate_values) == [1, 2]
    assert trial_records.count_finished(opened.study.trials) == 1


def test_one_that_has_no_room_for_a_single_image_fails_for_want_of_memory(tiny_data, tmp_path):
    opened = open_tiny(tiny_data, tmp_path / "s", CHANGES)
    done = trained(opened, "never fits")
    assert trial_records.state_of(done) == "failed"
    assert trial_records.reason_of(done) == "oom"
    assert done.user_attrs["parts"] == 8  # of a batch of 8
    assert done.user_attrs["message"] == "no room for a batch in 8 parts"


# --- what the watcher does, without a worker ---------------------------------------------------


@pytest.fixture
def job(tiny_data, tmp_path):
    """Of a training that goes wrong; its width is to be set."""
    opened = open_tiny(tiny_data, tmp_path / "s")
    return TrainJob(
        TrialConfig().to_dict(),
        opened.cache.path,
        opened.trial_data.train,
        opened.trial_data.val,
        "cpu",
        1,
        save_to=tmp_path / "model.safetensors",
        program=failing_training.__name__,
    )


def going_wrong(job, way: str) -> TrainJob:
    return replace(job, config=job.config | {"model": {"unet": {"width": FAILURE_WIDTHS[way]}}})


def test_a_training_that_is_taken_away_is_ended_and_nothing_of_it_is_told(job):
    taken, said = threading.Event(), []

    def hear(message):
        said.append(message)
        taken.set()
        return False

    with pytest.raises(LeaseLost):
        supervise(going_wrong(job, "sleeps"), hear, Limits(), StopConditions(fenced=taken.is_set))
    assert said == [ModelBuilt(10, 20)]
    assert is_gone(int(job.save_to.with_name("pid").read_text()))


def test_one_that_does_not_hear_is_given_some_seconds_to_be_put_down(job, monkeypatch):
    monkeypatch.setattr(supervisor, "SUSPEND_TIMEOUT_S", 0.5)
    began = time.monotonic()
    end = supervise(
        going_wrong(job, "ignores suspend"),
        lambda _: False,
        Limits(),
        StopConditions(suspend=lambda: True),
    )
    assert end == Suspended(0)
    assert time.monotonic() - began < 0.5 + PROMISED


def test_without_limits_nothing_is_limited_and_with_room_nothing_is_ended(job):
    plenty = Limits(seconds=600, stall=600, memory=10**12)
    for limits in (Limits(), plenty):
        end = supervise(going_wrong(job, "exits"), lambda _: False, limits, StopConditions())
        assert isinstance(end, JobError) and end.reason == "crash"
