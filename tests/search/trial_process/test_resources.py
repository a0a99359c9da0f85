"""Division of cores, memory and GPUs."""

import os

import psutil
import pytest

from lesionseg.errors import InputError
from search.trial_process import resources
from search.trial_process.resources import (
    MEMORY_SHARE,
    count_cores,
    default_slot,
    local_slots,
    planned_workers,
)
from search.trial_process.slot import Slot
from tests.fake_cuda import fake_cuda

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def whole():
    """Memory that trainings may use, in GB."""
    return default_slot("cpu").memory_gb


def test_the_default_slot_is_this_machine():
    slot = default_slot("cpu")
    assert slot.device == "cpu"
    assert slot.threads == count_cores() == CORES
    assert slot.share == 1.0
    assert 0 < slot.memory_gb <= MEMORY_SHARE * psutil.virtual_memory().total / 1e9
    assert default_slot("cpu", 3).threads == 3
    with pytest.raises(InputError, match="device: "):
        default_slot("gpu")


def test_memory_limit_of_a_container(monkeypatch):
    """Limits of cgroups versions 2 and 1."""
    limits = {}

    class Files:
        def __init__(self, path):
            self.path = path

        def read_text(self):
            if self.path not in limits:
                raise FileNotFoundError
            return limits[self.path]

    monkeypatch.setattr(resources, "Path", Files)
    total = psutil.virtual_memory().total
    assert default_slot("cpu").memory_gb == pytest.approx(MEMORY_SHARE * total / 1e9)
    limits["/sys/fs/cgroup/memory.max"] = "max\n"
    assert default_slot("cpu").memory_gb == pytest.approx(MEMORY_SHARE * total / 1e9)
    for path in ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"):
        limits[path] = "1000000000\n"
        assert default_slot("cpu").memory_gb == pytest.approx(MEMORY_SHARE)


def test_default_is_one_worker_with_all_resources(whole):
    assert local_slots("cpu") == [Slot("cpu", CORES, 1.0, whole)]
    assert local_slots("cpu", 3) == [Slot("cpu", 3, 1.0, whole)]


@pytest.mark.parametrize("workers", [1, 2, 3, 2 * CORES])
def test_cpu_workers_divide_cores_and_memory_evenly(workers, whole):
    slots = local_slots("cpu", workers=workers)
    assert len(slots) == workers
    assert len(set(slots)) == 1
    slot = slots[0]
    assert slot.threads == max(1, CORES // workers)
    assert slot.threads * workers <= max(CORES, workers)
    assert slot.memory_gb == pytest.approx(whole / workers)
    assert slot.share == 1.0


def test_threads_are_those_of_each_worker():
    assert [s.threads for s in local_slots("cpu", 5, workers=2)] == [5, 5]


@pytest.mark.parametrize(
    ("cores", "memory_gb", "workers"),
    [(1, 64, None), (2, 8, 2), (3, 64, 3), (64, 256, 4), (8, 4, None)],
)
def test_a_plan_has_a_few_cpu_workers_that_fit_the_memory(cores, memory_gb, workers, monkeypatch):
    monkeypatch.setattr(resources, "count_cores", lambda: cores)
    monkeypatch.setattr(resources, "_host_memory_gb", lambda: memory_gb)
    assert planned_workers("cpu") == workers
    assert planned_workers("cpu", 2) is None
    assert planned_workers("cpu", gpus="0") is planned_workers("cpu", workers_per_gpu=2) is None


def test_no_workers_no_slots():
    assert local_slots("cpu", workers=0) == []


def test_share_and_memory_of_one_worker():
    slot = default_slot("cpu", 2, share=0.5, memory_gb=1.5)
    assert slot == Slot("cpu", 2, 0.5, 1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "0,x"}, "--gpus: must be numbers such as 0,1, got '0,x'"),
        ({"gpus": "0,0"}, "--gpus: must name each GPU once, such as 0,1, got '0,0'"),
        ({"gpus": ""}, "--gpus: must name each GPU once"),
        ({"gpus": ","}, "--gpus: must name each GPU once"),
        ({"gpus": "63"}, "device: 'cuda:63' is not available"),
        ({"gpus": "-1"}, "cuda:-1"),
        ({"gpus": "0", "workers": 2}, "--gpus and --workers: give one"),
        ({"device": "nowhere", "workers": 2}, "device: must be"),
        ({"device": "cuda:63", "workers_per_gpu": 2}, "device: 'cuda:63' is not available"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        local_slots(options.pop("device", "auto"), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_workers_share_a_gpu(whole, device):
    with fake_cuda(count=2):
        slots = local_slots(gpus="0", workers_per_gpu=2)
        assert [(s.device, s.share) for s in slots] == [("cuda:0", 0.5)] * 2
        assert slots[0].memory_gb == pytest.approx(whole / 2)
        assert slots == local_slots(device, workers_per_gpu=2)
        assert [s.device for s in local_slots(gpus="1,0")] == ["cuda:1", "cuda:0"]


def test_workers_per_gpu_need_a_gpu():
    with pytest.raises(InputError, match="--workers-per-gpu: --device is cpu; use --workers"):
        local_slots("cpu", workers_per_gpu=2)


def test_workers_option_is_for_the_cpu():
    with fake_cuda(), pytest.raises(InputError, match="--workers: for CPU workers"):
        local_slots("cuda:0", workers=2)
