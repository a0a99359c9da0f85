"""Throughput of a network, without decoding and resizing of images."""

from __future__ import annotations

import time

import torch
from torch import nn

from lesionseg.runtime.device import amp_dtype, autocast

#: Forward passes before the measurement, in which kernels are chosen and memory is allocated.
WARM_UP_PASSES = 2
#: Minimum duration and number of passes of a measurement.
MIN_SECONDS, MIN_PASSES = 1.0, 3


@torch.inference_mode()
def images_per_second(
    model: nn.Module, image_size: int, device: torch.device, batch_size: int
) -> float:
    """Measure the images per second of the network's forward pass.

    Args:
        model: afterwards in evaluation mode, on ``device``, channels last; run in the half
            precision of its training, if the device has one.
        image_size: side of the images in pixels.
        device: device to measure on.
        batch_size: images per forward pass.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    shape = (batch_size, 3, image_size, image_size)
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    start, passes = 0.0, -WARM_UP_PASSES
    while passes < MIN_PASSES or time.perf_counter() - start < MIN_SECONDS:
        if passes == 0:
            start = time.perf_counter()
        with autocast(device, amp_dtype(device, "auto")):
            model(images)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        passes += 1
    return passes * batch_size / (time.perf_counter() - start)
