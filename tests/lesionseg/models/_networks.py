"""What the tests of our own networks share: the contract of one network."""

import itertools
import math

import torch


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
