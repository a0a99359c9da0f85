"""What a network costs to run, counted and not timed."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulate operations of one forward pass over one image.

    Convolutions, matrix products and attention are counted; sums, norms and activations are
    not, as is usual. torch counts a multiplication and an addition as two, hence the half.

    Args:
        model: a network from images [1, 3, S, S], on any device; it is left in its mode.
        image_size: side S of the image in pixels, which the network must accept.
    """
    modes = {module: module.training for module in model.modules()}
    first = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(image)
    finally:
        # Each by itself: a part may be frozen in evaluation while the rest trains.
        for module, training in modes.items():
            module.training = training
    return int(counter.get_total_flops()) // 2
