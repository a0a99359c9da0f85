"""Tasks in parallel on slots."""

import threading
import time

import pytest

from search.results.slot_threads import TaskStopped, join_slots, run_on_slots, share_slots
from search.trial_process.slot import Slot

SLOTS = [Slot("cpu", 1), Slot("cpu", 2)]


def test_each_slot_has_one_task_at_a_time_and_results_are_in_order():
    busy: set[int] = set()
    peak, lock = [], threading.Lock()

    def task(i):
        def run(slot, must_stop):
            with lock:
                assert slot.threads not in busy
                busy.add(slot.threads)
                peak.append(len(busy))
            time.sleep(0.02)
            with lock:
                busy.remove(slot.threads)
            return i

        return run

    assert run_on_slots([task(i) for i in range(6)], SLOTS) == list(range(6))
    assert max(peak) == 2


def test_the_first_error_stops_the_others_and_is_raised():
    started = []

    def wait(slot, must_stop):
        started.append("wait")
        while not must_stop():
            time.sleep(0.01)
        raise TaskStopped

    def fail(slot, must_stop):
        while not started:
            time.sleep(0.01)
        raise OSError("the disk is full")

    def never(slot, must_stop):
        started.append("never")

    with pytest.raises(OSError, match="the disk is full"):
        run_on_slots([wait, fail, never], SLOTS)
    assert started == ["wait"]


def test_an_interrupt_stops_all_tasks(monkeypatch):
    stopped = []

    def wait(slot, must_stop):
        while not must_stop():
            time.sleep(0.01)
        stopped.append(slot.threads)
        raise TaskStopped

    def interrupt(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr("search.results.slot_threads.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_on_slots([wait, wait], SLOTS)
    assert sorted(stopped) == [1, 2]


def test_fewer_tasks_than_cpu_slots_share_all_threads():
    slots = [Slot("cpu", 2, 1.0, 8.0)] * 4
    assert share_slots(slots, 2) == [Slot("cpu", 4, 1.0, 16.0)] * 2
    assert share_slots(slots, 3) == [Slot("cpu", 2, 1.0, 32.0 / 3)] * 3
    assert share_slots(slots, 4) == share_slots(slots, 9) == slots
    assert join_slots(slots) == Slot("cpu", 8, 1.0, 32.0)
    gpus = [Slot("cuda:0", 4), Slot("cuda:1", 4)]
    assert share_slots(gpus, 2) == gpus
    assert share_slots(gpus, 1) == [Slot("cuda:0", 8)]


def test_tasks_share_a_gpu_only_if_there_are_more_tasks_than_gpus():
    slots = [Slot(f"cuda:{i}", 2, 0.5, 8.0) for i in (0, 0, 1, 1)]
    assert share_slots(slots, 1) == [Slot("cuda:0", 8, 1.0, 32.0)]
    assert share_slots(slots, 2) == [Slot(f"cuda:{i}", 4, 1.0, 16.0) for i in (0, 1)]
    three = share_slots(slots, 3)
    assert [(s.device, s.share) for s in three] == [("cuda:0", 0.5), ("cuda:1", 1), ("cuda:0", 0.5)]
    assert share_slots(slots, 4) == slots
