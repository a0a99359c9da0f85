"""Which device is taken, what is refused, what configure_torch fixes."""

import os
import re
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch

from lesionseg.errors import InputError
from lesionseg.runtime import device
from lesionseg.runtime.device import (
    amp_dtype,
    autocast,
    configure_torch,
    describe_device,
    loader_workers,
    peak_memory,
    pick_device,
    with_index,
)
from tests.fake_cuda import fake_cuda

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch, *, cuda, mps):
    """Simulate a machine with some CUDA devices, with or without MPS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "taken"),
    [(2, True, "cuda:0"), (1, False, "cuda:0"), (0, True, "mps"), (0, False, "cpu")],
)
def test_auto_prefers_cuda_then_mps(monkeypatch, cuda, mps, taken):
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto") == pick_device() == torch.device(taken)


def test_device_by_name(monkeypatch):
    pretend(monkeypatch, cuda=2, mps=True)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "mps"):
        assert pick_device(name) == torch.device("cuda:0" if name == "cuda" else name)


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:x", "0", "CPU", "meta", "xpu", "cuda:-1", "a\nb"]
)
def test_unsupported_device_is_refused(name):
    with pytest.raises(InputError) as caught:
        pick_device(name)
    assert str(caught.value) == f"device: must be auto, cpu, mps, cuda or cuda:N, got {name!r}"


@pytest.mark.parametrize(
    ("name", "cuda", "message"),
    [
        ("cuda", 0, "device: 'cuda' is not available (0 CUDA devices); use cpu"),
        ("cuda:2", 2, "device: 'cuda:2' is not available (2 CUDA devices); use cpu"),
        ("mps", 1, "device: 'mps' is not available; use cpu"),
    ],
)
def test_unavailable_device_is_refused(monkeypatch, name, cuda, message):
    pretend(monkeypatch, cuda=cuda, mps=False)
    with pytest.raises(InputError) as caught:
        pick_device(name)
    assert str(caught.value) == message


def test_seed_determines_random_numbers():
    def draw(seed):
        configure_torch(CPU, seed)
        return torch.rand(5)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_cpu_is_deterministic_with_warnings_only():
    torch.use_deterministic_algorithms(False)
    configure_torch(CPU, 0)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_amp_is_for_cuda_only(kind, mode):
    assert amp_dtype(torch.device(kind), mode) is None


def test_amp_can_be_disabled():
    assert amp_dtype(CUDA, "off") is None


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
    ids=["V100", "T4", "A100"],
)
def test_amp_prefers_native_bfloat16(capability, dtype, name):
    with fake_cuda(count=2, capability=capability):
        assert amp_dtype(torch.device(name), "auto") == dtype


def test_a_cuda_device_has_an_index():
    assert with_index("cuda") == torch.device("cuda:0")  # without a driver
    assert with_index("cuda:1") == torch.device("cuda:1")
    assert [with_index(name) for name in ("cpu", "mps")] == [CPU, torch.device("mps")]
    with fake_cuda(count=2) as cuda:
        assert pick_device("cuda") == pick_device("auto") == torch.device("cuda:0")
        cuda.current = 1
        assert with_index(CUDA) == torch.device("cuda:1")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_dtype(dtype):
    a = torch.ones(2, 2)
    with autocast(CPU, dtype):
        assert (a @ a).dtype == (dtype or torch.float32)
    assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(
    ("threads", "cores", "loaders"),
    [(1, 64, 1), (2, 64, 1), (4, 64, 3), (9, 64, 8), (64, 64, 63), (16, 3, 2), (16, 1, 1)],
)
def test_number_of_loader_processes(monkeypatch, threads, cores, loaders):
    """cores: those that the scheduler allows this process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 256)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(device, "SHARED_MEMORY", Path("/nowhere"))
    assert loader_workers(CUDA, 1) == loaders
    assert loader_workers(CPU, 1) == 0


@pytest.mark.parametrize(("free_batches", "loaders"), [(100, 8), (12, 4), (11, 3), (2, 0)])
def test_loaders_fit_into_shared_memory(monkeypatch, tmp_path, free_batches, loaders):
    usage = namedtuple("usage", "total used free")(0, 0, free_batches * 10**6)
    monkeypatch.setattr(device.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(device, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    if loaders == 8:
        assert loader_workers(CUDA, 10**6) == 8
        return
    with pytest.warns(UserWarning, match=f"has {free_batches} MB free: {loaders} loaders instead"):
        assert loader_workers(CUDA, 10**6) == loaders


def test_peak_memory_is_in_bytes():
    held = torch.ones(30_000_000)  # 120 MB, touched
    peak = peak_memory(CPU)
    used = psutil.Process().memory_info().rss
    assert 0.9 * used < peak < 100 * used
    assert held.sum() > 0


def test_device_description():
    assert describe_device("cpu").startswith("cpu")
    if Path("/proc/cpuinfo").is_file() and "model name" in Path("/proc/cpuinfo").read_text():
        assert re.fullmatch(r"cpu \(.+\)", describe_device("cpu"))
