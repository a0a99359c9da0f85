"""Throughput of a network, without decoding and resizing of images."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import nn

from lesionseg.runtime.device import amp_dtype, autocast, with_index
from lesionseg.runtime.oom import run_unless_oom

#: Forward passes before the measurement, in which kernels are chosen and memory is allocated.
WARM_UP_PASSES = 2
#: Minimum duration and number of passes of a measurement.
MIN_SECONDS, MIN_PASSES = 1.0, 3


def images_per_second(
    model: nn.Module, image_size: int, device: torch.device, batch_size: int, amp: str = "auto"
) -> float:
    """Measure the images per second of the network's forward pass.

    Args:
        model: afterwards in evaluation mode, on ``device``, channels last.
        image_size: side of the images in pixels.
        device: device to measure on.
        batch_size: images per forward pass; halved as long as they do not fit into memory.
        amp: precision of the network's training; half precision if the device has one.
    """
    device = with_index(device)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    dtype = amp_dtype(device, amp)
    while batch_size > 1:
        measure = partial(_measure, model, (batch_size, 3, image_size, image_size), device, dtype)
        speed = run_unless_oom(measure, device)
        if speed is not None:
            return speed
        batch_size = (batch_size + 1) // 2
    return _measure(model, (1, 3, image_size, image_size), device, dtype)


@torch.inference_mode()
def _measure(
    model: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None
) -> float:
    # Random: processors are faster with zeros, which need less power.
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    start, passes = 0.0, -WARM_UP_PASSES
    while passes < MIN_PASSES or time.perf_counter() - start < MIN_SECONDS:
        if passes == 0:
            start = time.perf_counter()
        with autocast(device, dtype):
            model(images)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        passes += 1
    return passes * shape[0] / (time.perf_counter() - start)
