"""What a training does for the device's sake leaves what it gives as it was."""

import copy

import pytest
import torch
from torch.optim import SGD, AdamW

from lesionseg.config import TrialConfig
from lesionseg.optim import optimizers
from lesionseg.space import ComponentConfig
from lesionseg.training.training_state import load_optimizer_state
from tests.lesionseg.small import run_training, without_seconds

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrialConfig(
    model=ComponentConfig("unet", {"width": 4, "depth": 2}),
    augment=ComponentConfig("full"),
    optimizer=ComponentConfig("adam", {"lr": 1e-2}),
    image_size=16,
    batch_size=4,
    epochs=3,
)


def records(data, **options):
    return without_seconds(run_training(CONFIG, data, **options).history)


# --- fused optimizers ----------------------------------------------------------------------------


def use_fused_kernels(optimizer):
    """As ``build_optimizer`` does for weights on a CUDA device."""
    for options in (optimizer.defaults, *optimizer.param_groups):
        options["fused"] = True


@pytest.mark.parametrize("kind", optimizers.FUSED, ids=lambda k: k.__name__)
def test_fused_optimizer_equals_unfused(kind):
    """On the CPU, for which torch has fused kernels too."""
    options = {"momentum": 0.9, "nesterov": True} if kind is SGD else {}
    ends = []
    for fuse in (False, True):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
        optimizer = kind(weights, lr=0.1, **options)
        if fuse:
            use_fused_kernels(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            sum((w**4).sum() for w in weights).backward()
            optimizer.step()
        ends.append(torch.cat([w.detach().flatten() for w in weights]))
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(("was", "now"), [(False, True), (True, False)])
def test_optimizer_state_is_loaded_fused_or_not(was, now):
    def built(fuse):
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = AdamW([weight], lr=0.1)
        if fuse:
            use_fused_kernels(optimizer)
        return weight, optimizer

    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()

    weight, optimizer = built(was)
    other, its = built(now)
    step(weight, optimizer)
    with torch.no_grad():
        other.copy_(weight)
    load_optimizer_state(its, copy.deepcopy(optimizer.state_dict()))  # which holds the live tensors
    assert bool(its.param_groups[0]["fused"]) == now
    for each in ((weight, optimizer), (other, its)):
        step(*each)
    torch.testing.assert_close(weight, other)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_optimizers_are_used_on_a_cpu(name):
    """Weights of convolutions are in memory as the kernel of a fused step does not expect them."""
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = optimizers.build_optimizer(ComponentConfig(name), model.parameters())
        assert all(group["fused"] for group in optimizer.param_groups)
        if not fused:
            for group in optimizer.param_groups:
                group["fused"] = None
        for _ in range(4):
            optimizer.zero_grad()
            images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
            model(images).square().mean().backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*ends)
