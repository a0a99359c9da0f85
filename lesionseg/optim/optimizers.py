"""OPTIMIZERS: every entry builds an optimizer from parameters or parameter groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.optimizer import ParamsT

from lesionseg.space import ComponentConfig, Float, RegistryEntry, build, lookup


def build_lion(parameters: ParamsT, lr: float, weight_decay: float) -> Optimizer:
    """Build Lion with decoupled decay; Chen et al., arXiv:2302.06675."""
    from timm.optim.lion import Lion  # takes seconds to import

    optimizer: Optimizer = Lion(parameters, lr=lr, weight_decay=weight_decay)
    return optimizer


ADAMS_LR = Float(1e-5, 1e-1, default=1e-3, log=True)
DECOUPLED_DECAY = Float(1e-6, 1e-1, default=1e-2, log=True)
# An L2 penalty: unlike decoupled decay it is part of the gradient.
COUPLED_DECAY = Float(1e-6, 1e-2, default=1e-4, log=True)

#: Adam: Kingma and Ba, arXiv:1412.6980. AdamW: Loshchilov and Hutter, arXiv:1711.05101. SGD:
#: Sutskever et al., ICML 2013. RMSprop: Tieleman and Hinton, Coursera 2012, lecture 6. NAdam:
#: Dozat, ICLR workshop 2016.
OPTIMIZERS: dict[str, RegistryEntry] = {
    "adam": RegistryEntry(Adam, {"lr": ADAMS_LR}, "Adam"),
    "adamw": RegistryEntry(
        AdamW,
        {"lr": ADAMS_LR, "weight_decay": DECOUPLED_DECAY},
        "Adam with decoupled weight decay",
    ),
    "sgd": RegistryEntry(
        partial(SGD, nesterov=True),
        {
            "lr": Float(1e-4, 1.0, default=5e-2, log=True),
            "momentum": Float(0.5, 0.99, default=0.9),
            "weight_decay": COUPLED_DECAY,
        },
        "SGD with Nesterov momentum",
    ),
    "rmsprop": RegistryEntry(
        RMSprop,
        {
            # The mean square starts at zero without bias correction and momentum accumulates ten
            # steps: the first steps are about 1 / sqrt(1 - alpha) times the rate, later ones ten.
            "lr": Float(1e-6, 1e-2, default=1e-4, log=True),
            "momentum": Float(0.0, 0.99, default=0.9),
            "alpha": Float(0.9, 0.999, default=0.99),  # decay of the mean square
            "weight_decay": Float(1e-8, 1e-3, default=1e-5, log=True),
        },
        "RMSprop with momentum",
    ),
    "lion": RegistryEntry(
        build_lion,
        {
            # Every weight changes by the learning rate in each step: the paper (section 5) uses a
            # rate 3 to 10 times smaller than AdamW's and a decay larger by the same factor.
            "lr": Float(1e-6, 1e-2, default=1e-4, log=True),
            "weight_decay": Float(1e-5, 1.0, default=1e-1, log=True),
        },
        "the sign of the momentum",
    ),
    "nadam": RegistryEntry(
        partial(NAdam, decoupled_weight_decay=True),
        {"lr": ADAMS_LR, "weight_decay": DECOUPLED_DECAY},
        "Adam with Nesterov momentum and decoupled weight decay",
    ),
}

#: Optimizers with a fused implementation for CUDA and CPUs.
FUSED = (Adam, AdamW, SGD)


def build_optimizer(
    component: ComponentConfig,
    parameters: Iterable[Parameter],
    lr_factors: Mapping[Parameter, float] = MappingProxyType({}),
) -> Optimizer:
    """Build an optimizer; InputError if the component is not in the table.

    Parameters with a factor have groups of their own, after those of the others: torch's fused SGD
    needs all weights of a group to have their first gradient in the same step. With weight decay
    there are two groups instead of one, which may be empty: weights of two or more dimensions with
    decay, and biases and weights of norms without.

    Args:
        component: an entry of OPTIMIZERS and its parameters.
        parameters: what to train.
        lr_factors: factors of the learning rate by parameter.
    """
    decays = "weight_decay" in lookup("optimizer", OPTIMIZERS, component.name).space
    by_factor: dict[float | None, list[Parameter]] = {None: []}
    for parameter in parameters:
        by_factor.setdefault(lr_factors.get(parameter), []).append(parameter)
    groups = [
        (1.0 if factor is None else factor, group)
        for factor, members in by_factor.items()
        for group in (_decay_groups(members) if decays else [{"params": members}])
    ]
    optimizer: Optimizer = build("optimizer", OPTIMIZERS, component, [group for _, group in groups])
    for (factor, _), group in zip(groups, optimizer.param_groups, strict=True):
        group["lr"] *= factor
    devices = {p.device.type for group in optimizer.param_groups for p in group["params"]}
    # One kernel for all weights; on a CPU one loop over each. That loop needs gradients with the
    # memory format of their weights, which autograd gives them.
    if isinstance(optimizer, FUSED) and devices in ({"cuda"}, {"cpu"}):
        for options in (optimizer.defaults, *optimizer.param_groups):
            options["fused"] = True
    return optimizer


def _decay_groups(parameters: list[Parameter]) -> list[dict[str, Any]]:
    # He et al., arXiv:1812.01187, section 3.1: biases and scales of norms are too few to overfit,
    # and decay would suppress their channels.
    return [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
