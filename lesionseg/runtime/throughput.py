"""How many images a second a network handles once it is warm: no decoding, no resizing."""

from __future__ import annotations

import time

import torch
from torch import nn

from lesionseg.runtime.device import amp_dtype, autocast

#: Passes that are not timed: kernels are chosen and memory is reserved in them.
WARM_UP = 2
#: Seconds that a measurement goes on for, and the passes that it has at least.
SECONDS, PASSES = 1.0, 3


@torch.inference_mode()
def images_per_second(
    model: nn.Module, image_size: int, device: torch.device, batch_size: int
) -> float:
    """Images a second through the network alone, ``batch_size`` at a time.

    model: in evaluation mode afterwards, on ``device``, channels last in memory; in the half
    precision that it is trained in, where the device has one.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    shape = (batch_size, 3, image_size, image_size)
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    dtype = amp_dtype(device, "auto")

    def once() -> None:
        with autocast(device, dtype):
            model(images)

    for _ in range(WARM_UP):
        once()
    _wait(device)
    began, passes = time.perf_counter(), 0
    while passes < PASSES or time.perf_counter() - began < SECONDS:
        once()
        _wait(device)
        passes += 1
    return passes * batch_size / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    # A GPU answers before it has worked.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
