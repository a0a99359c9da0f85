"""Device selection (CUDA, Apple's MPS, CPU), seeds, precision, loader processes."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from lesionseg.errors import InputError

#: Environment variable for where images are augmented, which is not part of a configuration: it
#: does not change what is trained. On the device, on the host by albumentations, or on the device
#: if the images fit there.
AUGMENT, AUGMENT_VALUES = "LESIONSEARCH_AUGMENT", ("auto", "host", "device")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name; ``auto`` selects CUDA, then MPS, then the CPU.

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
    return device


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
    # GPUs that emulate bfloat16 (V100, T4) are slower with it than with float32.
    is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_native else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context of mixed precision, or one without effect if the dtype is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def loader_workers(device: torch.device) -> int:
    """Return the number of loader processes.

    0 on a CPU, where a thread loads beside a training that uses all cores. Otherwise torch's
    threads minus one, from 1 to 8: trainings that share a host have limited threads.
    """
    if device.type == "cpu":
        return 0
    threads = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):  # Linux: a scheduler may allow fewer cores
        threads = min(threads, len(os.sched_getaffinity(0)))
    return max(1, min(8, threads - 1))


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


def read_augment_setting() -> str:
    """Return the variable's value, by default "auto"; InputError if it is invalid."""
    value = os.environ.get(AUGMENT, "auto")
    if value not in AUGMENT_VALUES:
        raise InputError(
            f"{AUGMENT}: must be {', '.join(AUGMENT_VALUES)}, got {value!r}; or unset it"
        )
    return value
