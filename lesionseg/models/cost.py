"""Computational cost of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
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
    # On the meta device only shapes are computed, up to twenty times as fast as on a CPU.
    tensors = (*model.named_parameters(), *model.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    dtype = next(model.parameters()).dtype
    image = torch.zeros(1, 3, image_size, image_size, device="meta", dtype=dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        functional_call(model.eval(), state, (image,))
    model.train(training)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition
