"""What the tests of our own networks share: the contract of one network, and overfitting."""

import itertools
import math

import numpy as np
import torch
from torch.nn import functional as F

from lesionseg.data.synthetic import render


def images(size, n=2, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def build_seeded(option, seed=0, **params):
    """The row's network; parameters not given are the row's defaults."""
    torch.manual_seed(seed)
    return option.build(**option.resolve(params))


def corners(option, **fixed):
    """Every combination of the extreme values of a row's parameters but those that are fixed."""
    free = {name: d.extremes() for name, d in option.space.items() if name not in fixed}
    for values in itertools.product(*free.values()):
        yield {**fixed, **dict(zip(free, values, strict=True))}


def least(option, params):
    """The smallest image size of a row with these parameters."""
    stride = option.stride(**option.resolve(params))
    return math.ceil(max(stride, option.min_image_size) / stride) * stride


def check_training(model, size, n=2):
    """A step gives logits of full size, and every parameter a finite gradient; the logits."""
    model.train().zero_grad(set_to_none=True)
    given = model(images(size, n))
    every = given if isinstance(given, tuple) else (given,)
    assert [tuple(g.shape) for g in every] == [(n, 1, size, size)] * len(every)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in every)
    sum(g.square().mean() for g in every).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, g in grads.items() if g is None or not g.isfinite().all()] == []
    return given


def check_evaluation(model, sizes):
    """One tensor at every size; a picture alone, or in channels_last, is judged the same."""
    model.eval()
    with torch.inference_mode():
        for size in sizes:
            batch = images(size, 3)
            together = model(batch)
            assert isinstance(together, torch.Tensor)
            assert together.shape == (3, 1, size, size)
            alone = model(batch[1:2])
            last = model(batch.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(alone, together[1:2], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(last, together, atol=1e-4, rtol=1e-4)


def overfitted_dice(model, *, steps, rate):
    """The mean Dice, in evaluation, of a network trained on eight synthetic pictures of 64 px.

    So few steps leave batch norm's running statistics behind the weights, the further the deeper
    the network: they are taken anew from one pass with the last weights.
    """
    samples = [render(seed, 64, 64) for seed in range(8)]
    pixels = np.stack([s.image for s in samples]).transpose(0, 3, 1, 2)
    pictures = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    masks = torch.from_numpy(np.stack([s.mask for s in samples]) > 0)[:, None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        given = model(pictures)
        every = given if isinstance(given, tuple) else (given,)
        sum(F.binary_cross_entropy_with_logits(g, masks.float()) for g in every).backward()
        optimiser.step()
        schedule.step()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain average of what it sees from now on
    with torch.no_grad():
        model(pictures)
        found = model.eval()(pictures) > 0
    both = (found & masks).sum((1, 2, 3))
    return float((2 * both / (found.sum((1, 2, 3)) + masks.sum((1, 2, 3)))).mean())
