"""Device selection (CUDA, Apple's MPS, CPU), seeds, precision, loader processes."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from lesionseg.errors import InputError

#: Where processes pass tensors to each other on Linux. Containers limit it to 64 MB by default.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
#: Batches that a loader process holds: torch's prefetch of two, and the one at work.
BATCHES_PER_LOADER = 3
#: Texts of CUDA errors that mean a failed device or driver. An illegal memory access or a failed
#: launch is not among them: the network may be the reason.
LOST_MESSAGES = (
    "no CUDA-capable device is detected",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "CUDA-capable device(s) is/are busy or unavailable",
    "CUDA driver initialization failed",
    "CUDA driver version is insufficient",
    "CUDA unknown error",
    "CUDA error: unknown error",
    "uncorrectable ECC error",
    "system not yet initialized",
    "system has unsupported display driver",
    "device is lost",
    "fallen off the bus",
)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name; ``auto`` selects CUDA, then MPS, then the CPU.

    A CUDA device has an index: torch refuses some calls without one.

    Raises:
        InputError: not a device, or not available on this machine.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        is_supported = device.type in {"cpu", "mps", "cuda"}  # torch has more, such as meta
    except RuntimeError:
        is_supported = False
    if not is_supported:
        raise InputError(f"device: must be auto, cpu, mps, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {name!r} is not available ({torch.cuda.device_count()} CUDA devices); use cpu"
        )
    if device.type == "mps" and not has_mps:
        raise InputError("device: 'mps' is not available; use cpu")
    return with_index(device)


def is_device_lost(error: BaseException) -> bool:
    """Return whether an error means that a GPU or its driver has failed."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_MESSAGES)


def with_index(device: torch.device | str) -> torch.device:
    """Return a device with its index: ``cuda`` becomes the current CUDA device, or ``cuda:0``."""
    device = torch.device(device)
    if device.type != "cuda" or device.index is not None:
        return device
    # Not initialized before: asking for the current device would create a context.
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


def configure_torch(device: torch.device, seed: int) -> None:
    """Seed torch's generators and make CPU runs bit-reproducible."""
    torch.manual_seed(seed)
    if device.type == "cpu":
        # torch warns of unpooling, because duplicate indices would race; those of 2x2 pooling are
        # unique.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling uninitialised memory takes a fifth of a U-Net's step and does not change results.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def amp_dtype(device: torch.device, mode: str) -> torch.dtype | None:
    """Return the half precision to train in, or None for float32."""
    if mode == "off" or device.type != "cuda":
        return None
    # GPUs before compute capability 8 (V100, T4) emulate bfloat16 more slowly than float32.
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context of mixed precision, or one without effect if the dtype is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def loader_workers(device: torch.device, batch_bytes: int) -> int:
    """Return the number of loader processes.

    0 on a CPU, where a thread loads beside a training that uses all cores. Otherwise torch's
    threads minus one, at least 1: trainings that share a host have limited threads. Fewer, with a
    warning, if their batches of ``batch_bytes`` would not fit into shared memory.
    """
    if device.type == "cpu":
        return 0
    threads = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):  # Linux: a scheduler may allow fewer cores
        threads = min(threads, len(os.sched_getaffinity(0)))
    workers = max(1, threads - 1)
    if not SHARED_MEMORY.is_dir():
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = free // (BATCHES_PER_LOADER * batch_bytes)
    if fitting < workers:
        warnings.warn(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free: {fitting} loaders instead of {workers};"
            " start the container with more, such as --shm-size=8g",
            stacklevel=2,
        )
    return min(workers, fitting)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the device for CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux


def describe_device(device: torch.device | str) -> str:
    """Return device and model, such as ``cuda:0 (NVIDIA H200)`` or ``cpu (AMD EPYC 7763)``."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = f"model name: {platform.processor()}"
    match = re.search(r"^model name\s*: *(\S.*)$", text, re.MULTILINE)
    return f"{device} ({match[1].strip()})" if match else str(device)
