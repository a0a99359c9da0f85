"""How cores, memory and GPUs are parted."""

import os

import psutil
import pytest
import torch

from lesionseg.errors import InputError
from search.trial_process import resources
from search.trial_process.resources import (
    MEMORY_SHARE,
    count_cores,
    default_slot,
    local_slots,
    worker_slot,
)
from search.trial_process.slot import Slot

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def whole():
    """The memory of this machine that trainings may take, in GB."""
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


def test_the_memory_that_a_container_may_take_is_what_there_is(monkeypatch):
    """cgroups, of the second version and of the first, say it in a file."""
    found = {}

    class Files:
        def __init__(self, path):
            self.path = path

        def read_text(self):
            if self.path not in found:
                raise FileNotFoundError
            return found[self.path]

    monkeypatch.setattr(resources, "Path", Files)
    total = psutil.virtual_memory().total
    assert default_slot("cpu").memory_gb == pytest.approx(MEMORY_SHARE * total / 1e9)
    found["/sys/fs/cgroup/memory.max"] = "max\n"
    assert default_slot("cpu").memory_gb == pytest.approx(MEMORY_SHARE * total / 1e9)
    for path in ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"):
        found[path] = "1000000000\n"
        assert default_slot("cpu").memory_gb == pytest.approx(MEMORY_SHARE)


def test_nothing_said_is_one_worker_with_all_of_it(whole):
    assert local_slots("cpu") == [Slot("cpu", CORES, 1.0, whole)]
    assert local_slots("cpu", 3) == [Slot("cpu", 3, 1.0, whole)]


@pytest.mark.parametrize("workers", [1, 2, 3, 2 * CORES])
def test_workers_on_the_cpu_part_cores_and_memory_evenly(workers, whole):
    parted = local_slots("cpu", workers=workers)
    assert len(parted) == workers
    assert len(set(parted)) == 1
    slot = parted[0]
    assert slot.threads == max(1, CORES // workers)
    assert slot.threads * workers <= max(CORES, workers)
    assert slot.memory_gb == pytest.approx(whole / workers)
    assert slot.share == 1.0


def test_threads_that_are_said_are_each_workers():
    assert [s.threads for s in local_slots("cpu", 5, workers=2)] == [5, 5]


def test_no_worker_at_all_is_no_slot():
    assert local_slots("cpu", workers=0) == []


def test_a_worker_that_joins_by_hand_has_what_it_says_and_else_the_machine(whole):
    assert worker_slot("cpu") == default_slot("cpu")
    said = worker_slot("cpu", 2, share=0.5, memory_gb=1.5)
    assert said == Slot("cpu", 2, 0.5, 1.5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gpus": "0,x"}, "--gpus: must be numbers such as 0,1, got '0,x'"),
        ({"gpus": "0,0"}, "--gpus: must name each GPU once, such as 0,1, got '0,0'"),
        ({"gpus": ""}, "--gpus: must name each GPU once"),
        ({"gpus": ","}, "--gpus: must name each GPU once"),
        ({"gpus": "63"}, "device: 'cuda:63' is not here"),
        ({"gpus": "-1"}, "cuda:-1"),
        ({"gpus": "0", "workers": 2}, "--gpus and --workers: give one"),
        ({"device": "nowhere", "workers": 2}, "device: must be"),
        ({"device": "cuda:63", "workers_per_gpu": 2}, "device: 'cuda:63' is not here"),
    ],
)
def test_what_does_not_fit_together_is_told(options, told):
    with pytest.raises(InputError) as caught:
        local_slots(options.pop("device", "auto"), **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
def test_workers_that_share_a_gpu_have_a_part_of_it_and_of_the_host(whole):
    parted = local_slots(gpus="0", workers_per_gpu=2)
    assert [(s.device, s.share) for s in parted] == [("cuda:0", 0.5)] * 2
    assert parted[0].memory_gb == pytest.approx(whole / 2)
    assert parted == local_slots("cuda:0", workers_per_gpu=2)


@needs_gpu
def test_workers_are_of_the_cpu_and_a_gpu_has_workers_of_its_own():
    with pytest.raises(InputError, match="--workers: these are for the CPU"):
        local_slots("cuda:0", workers=2)


@pytest.mark.parametrize("switch", ["LESIONSEARCH_AUGMENT", "LESIONSEARCH_COMPILE"])
@pytest.mark.parametrize("make", [default_slot, worker_slot, local_slots])
def test_a_switch_of_the_environment_that_says_nothing_is_told_at_the_door(
    monkeypatch, switch, make
):
    """Else every trial of a study would end with it."""
    monkeypatch.setenv(switch, "gpu")
    with pytest.raises(InputError, match=f"{switch}: must be auto, .*, got 'gpu'; or unset it"):
        make("cpu")
