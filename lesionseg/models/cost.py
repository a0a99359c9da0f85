"""Computational cost of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Count the multiply-accumulate operations of a forward pass over one image.

    As usual, convolutions, matrix products and attention are counted; sums, norms and activations
    are not.

    Args:
        model: a network from images [1, 3, S, S], on any device; its mode is restored.
        image_size: side S of the image in pixels.
    """
    training = model.training
    first = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(image)
    model.train(training)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition
