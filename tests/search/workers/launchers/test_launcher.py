"""Back-off of workers that died, with a fake clock."""

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from search.study.location import StudyLocation
from search.workers.launchers import launcher
from search.workers.launchers.launcher import LaunchContext, ManagedWorker, RestartPolicy


@dataclass
class FakeClock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(launcher, "time", clock)
    return clock


@pytest.fixture
def events():
    return []


@pytest.fixture
def worker(clock, events):
    context = LaunchContext(
        StudyLocation("s", Path("s")),
        threading.Event(),
        on_event=events.append,
        restart_policy=RestartPolicy(max_failures=5, longest_pause_s=4.0, steady_s=100.0),
    )
    return ManagedWorker("0", context)


def test_pauses_double_up_to_the_longest_and_end(worker, clock, events):
    while not worker.is_given_up:
        assert worker.is_due()
        worker.record_start()
        clock.now += 1
        worker.record_failure("died")
        assert not worker.is_due()
        clock.now += 4
    assert events == [f"died; restarts in {n} s" for n in (1, 2, 4, 4)] + [
        "died; given up after 5 failures in a row"
    ]
    clock.now += 1e6
    assert not worker.is_due()


def test_pause_is_waited_for_exactly(worker, clock):
    worker.record_failure("died")
    clock.now += 0.999
    assert not worker.is_due()
    clock.now += 0.001
    assert worker.is_due()


@pytest.mark.parametrize(("ran_s", "failures"), [(99, 2), (100, 1)])
def test_long_runs_reset_the_count(worker, clock, ran_s, failures):
    worker.record_failure("died")
    worker.record_start()
    clock.now += ran_s
    worker.record_failure("died")
    assert worker.failures == failures


def test_worker_that_never_started_is_not_steady(worker, clock):
    for _ in range(2):
        clock.now += 1000
        worker.record_failure("died")
    assert worker.failures == 2
