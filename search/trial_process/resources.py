"""How a host's cores, memory and GPUs are parted among workers."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from lesionseg.errors import InputError
from lesionseg.runtime.device import pick_device
from lesionseg.runtime.env import check_switches
from search.trial_process.slot import Slot

#: Of the host's memory, what trainings may take together; the rest is for workers and others.
OF_MEMORY = 0.9


def default_slot(device: str = "auto", threads: int | None = None) -> Slot:
    """This machine's device, with all the cores that this process may use. Raises InputError."""
    check_switches()
    return Slot(str(pick_device(device)), threads or cores(), memory_gb=_memory_gb() * OF_MEMORY)


def worker_slot(
    device: str = "auto",
    threads: int | None = None,
    *,
    share: float = 1.0,
    memory_gb: float | None = None,
) -> Slot:
    """The slot of a worker that joins by hand; as ``default_slot`` where nothing is said."""
    whole = default_slot(device, threads)
    return Slot(whole.device, whole.threads, share, memory_gb or whole.memory_gb)


def local_slots(
    device: str = "auto",
    threads: int | None = None,
    *,
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int = 1,
) -> list[Slot]:
    """The slots of this host.

    gpus: their numbers, such as "0,1". workers_per_gpu: how many share each of them. workers: how
    many there are on the CPU; 0 for none at all. threads: of each worker; the cores are parted
    evenly where it is not said. Raises InputError.
    """
    check_switches()
    if gpus is not None and workers is not None:
        raise InputError(
            "--gpus and --workers: give one; --workers-per-gpu says how many share one"
        )
    if gpus is None and workers is None and workers_per_gpu == 1:
        return [default_slot(device, threads)]
    if gpus is None and workers is None:
        gpus = "0" if device == "auto" else device.removeprefix("cuda:").removeprefix("cuda")
    devices = _gpus(gpus, workers_per_gpu) if gpus is not None else _plain(device, workers or 0)
    n = max(1, len(devices))
    share = 1 / workers_per_gpu if gpus is not None else 1.0
    memory = _memory_gb() * OF_MEMORY / n
    return [Slot(d, threads or max(1, cores() // n), share, memory) for d in devices]


def cores() -> int:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def _gpus(text: str, each: int) -> list[str]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--gpus: must be numbers such as 0,1, got {text!r}") from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"--gpus: must name each GPU once, such as 0,1, got {text!r}")
    return [str(pick_device(f"cuda:{n}")) for n in numbers for _ in range(each)]


def _plain(device: str, workers: int) -> list[str]:
    picked = str(pick_device(device))
    if picked.startswith("cuda") and workers > 1:
        raise InputError("--workers: these are for the CPU; say --gpus and --workers-per-gpu")
    return [picked] * workers


def _memory_gb() -> float:
    """The host's memory, or what its container may take of it."""
    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):  # no limit, no container, no Linux
            continue
    return total / 1e9
