"""Division of a host's cores, memory and GPUs among workers."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from lesionseg.errors import InputError
from lesionseg.runtime.device import pick_device
from search.trial_process.slot import Slot

#: Part of the host's memory that all trainings may use together.
MEMORY_SHARE = 0.9
#: Workers of a CPU at most where a plan chooses their number, and memory of each in GB. Small
#: networks use several threads badly: on two cores, two workers with one thread each train 1.4 to
#: 1.7 times as many images as one with two threads (bench/results/peers-cpu.md).
MAX_PLANNED_WORKERS, WORKER_GB = 4, 3.0
#: Memory limits of containers, cgroups version 2 and 1.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def default_slot(
    device: str = "auto",
    threads: int | None = None,
    *,
    share: float = 1.0,
    memory_gb: float | None = None,
) -> Slot:
    """Return the slot of a single worker; InputError for a bad device.

    None for threads is all cores of this process, and for memory_gb 90% of the host's memory.
    """
    memory_gb = memory_gb or _host_memory_gb() * MEMORY_SHARE
    return Slot(str(pick_device(device)), threads or count_cores(), share, memory_gb)


def local_slots(
    device: str = "auto",
    threads: int | None = None,
    *,
    workers: int | None = None,
    gpus: str | None = None,
    workers_per_gpu: int = 1,
) -> list[Slot]:
    """Divide this host among workers.

    Args:
        device: as in ``Slot``.
        threads: CPU threads of each worker; None divides the cores evenly.
        workers: number of CPU workers; 0 for none.
        gpus: numbers of the GPUs, such as "0,1".
        workers_per_gpu: number of workers that share each GPU.

    Returns:
        A slot for each worker.

    Raises:
        InputError: the options contradict, or a device does not exist.
    """
    if gpus is not None and workers is not None:
        raise InputError("--gpus and --workers: give one; --workers-per-gpu sets workers of a GPU")
    if gpus is None and workers is None:
        if workers_per_gpu == 1:
            return [default_slot(device, threads)]
        shared = pick_device("cuda" if device == "auto" else device)
        if shared.type != "cuda":
            raise InputError(f"--workers-per-gpu: --device is {device}; use --workers")
        gpus = str(shared.index)
    if gpus is not None:
        devices, share = _gpu_devices(gpus, workers_per_gpu), 1 / workers_per_gpu
    else:
        devices, share = _cpu_devices(device, workers or 0), 1.0
    count = max(1, len(devices))
    memory_gb = _host_memory_gb() * MEMORY_SHARE / count
    threads = threads or max(1, count_cores() // count)
    return [Slot(device, threads, share, memory_gb) for device in devices]


def planned_workers(
    device: str = "auto",
    threads: int | None = None,
    *,
    gpus: str | None = None,
    workers_per_gpu: int = 1,
) -> int | None:
    """Return the number of CPU workers for a plan; None for one worker, or for GPUs.

    Arguments as in ``local_slots``; with ``threads`` there is one worker.
    """
    if threads or gpus is not None or workers_per_gpu > 1 or pick_device(device).type != "cpu":
        return None
    fitting = int(_host_memory_gb() * MEMORY_SHARE / WORKER_GB)
    workers = min(MAX_PLANNED_WORKERS, count_cores(), fitting)
    return workers if workers > 1 else None


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_devices(gpus: str, workers_per_gpu: int) -> list[str]:
    try:
        numbers = [int(part) for part in gpus.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--gpus: must be numbers such as 0,1, got {gpus!r}") from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"--gpus: must name each GPU once, such as 0,1, got {gpus!r}")
    return [str(pick_device(f"cuda:{n}")) for n in numbers for _ in range(workers_per_gpu)]


def _cpu_devices(device: str, workers: int) -> list[str]:
    resolved = str(pick_device(device))
    if resolved.startswith("cuda") and workers > 1:
        raise InputError("--workers: for CPU workers; use --gpus and --workers-per-gpu")
    return [resolved] * workers


def _host_memory_gb() -> float:
    """Return the memory of the host or of its container in GB."""
    limit = psutil.virtual_memory().total
    for path in CGROUP_LIMITS:
        try:
            limit = min(limit, int(Path(path).read_text()))
        except (OSError, ValueError):  # no limit, no container or not Linux
            continue
    return limit / 1e9
