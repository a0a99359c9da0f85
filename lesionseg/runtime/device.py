"""Where and how to compute: CUDA, Apple's MPS or the CPU; seeds, precision, threads."""

from __future__ import annotations

import os
import platform
import resource
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from lesionseg.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    InputError where it is no device or this machine lacks it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    try:
        device = torch.device(name)
        known = device.type in {"cpu", "mps", "cuda"}  # torch knows many more, such as meta
    except RuntimeError:
        known = False
    if not known:
        raise InputError(f"device: must be auto, cpu, mps, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {name!r} is not here ({torch.cuda.device_count()} CUDA devices); use cpu"
        )
    if device.type == "mps" and not _has_mps():
        raise InputError("device: 'mps' is not here; use cpu")
    return device


def configure_torch(device: torch.device, seed: int) -> None:
    """Seeds every generator and sets what makes CPU runs repeat to the last digit."""
    torch.manual_seed(seed)
    if device.type == "cpu":
        # Unpooling is on torch's list of doubtful operations, since indices that occur twice
        # would race; those of a 2x2 pooling never do.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling what is about to be written, which finds reads before a write, is a fifth of a
        # U-Net's step, and changes no result of operations that make none.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    else:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def amp_dtype(device: torch.device, mode: str) -> torch.dtype | None:
    """The half precision to train in, or None for float32 throughout."""
    if mode == "off" or device.type != "cuda":
        return None
    # A GPU without bfloat16 of its own (V100, T4) computes it through float32, slower than that.
    own = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if own else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context of mixed precision, or one that does nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def loader_workers(device: torch.device) -> int:
    """Processes that augment ahead of the device.

    None on a CPU: there a thread does it, beside a training that keeps every core busy. Else one
    less than torch has threads here, from 1 to 8: of a host that several trainings share, a
    training's threads are its part.
    """
    if device.type == "cpu":
        return 0
    threads = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):  # Linux: a scheduler may have left fewer cores than that
        threads = min(threads, len(os.sched_getaffinity(0)))
    return max(1, min(8, threads - 1))


def peak_memory(device: torch.device) -> int:
    """The most bytes used so far: on the device for CUDA, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def describe_device(device: torch.device | str) -> str:
    """What it is for people: ``cuda:0 (NVIDIA H200)``, ``cpu (AMD EPYC 7763)``."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{device} ({name})" if name else str(device)


def _processor() -> str:
    """The processor's name; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = (
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
            return next(names, "")
    except OSError:  # no Linux
        return platform.processor()
