"""OPTIMIZERS: a row builds from a network's parameters, or from groups of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.optimizer import ParamsT

from lesionseg.space import Float, ComponentConfig, RegistryEntry, build, lookup


def build_adam(parameters: ParamsT, lr: float) -> Optimizer:
    """Adam; Kingma and Ba, arXiv:1412.6980."""
    return Adam(parameters, lr=lr)


def build_adamw(parameters: ParamsT, lr: float, weight_decay: float) -> Optimizer:
    """Adam with decoupled weight decay; Loshchilov and Hutter, arXiv:1711.05101."""
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


def build_sgd(parameters: ParamsT, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum; Sutskever et al., ICML 2013."""
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True)


def build_rmsprop(
    parameters: ParamsT, lr: float, momentum: float, alpha: float, weight_decay: float
) -> Optimizer:
    """Gradients over the root of their mean square; Tieleman and Hinton, Coursera 2012, lecture 6.

    alpha: the share of the past in that mean square, which is remembered for 1 / (1 - alpha)
        steps.
    """
    return RMSprop(parameters, lr=lr, alpha=alpha, momentum=momentum, weight_decay=weight_decay)


def build_lion(parameters: ParamsT, lr: float, weight_decay: float) -> Optimizer:
    """Steps along the sign of the momentum, decay decoupled; Chen et al., arXiv:2302.06675."""
    # timm takes seconds to import, which only the trials with this row should pay.
    from timm.optim.lion import Lion

    optimizer: Optimizer = Lion(parameters, lr=lr, weight_decay=weight_decay)
    return optimizer


def build_nadam(parameters: ParamsT, lr: float, weight_decay: float) -> Optimizer:
    """Adam with Nesterov momentum and decoupled decay; Dozat, ICLR workshop 2016."""
    return NAdam(parameters, lr=lr, weight_decay=weight_decay, decoupled_weight_decay=True)


ADAMS_LR = Float(1e-5, 1e-1, default=1e-3, log=True)
DECOUPLED_DECAY = Float(1e-6, 1e-1, default=1e-2, log=True)
# A decay that is added to the gradient is not scaled by the learning rate's size once more.
COUPLED_DECAY = Float(1e-6, 1e-2, default=1e-4, log=True)

OPTIMIZERS: dict[str, RegistryEntry] = {
    "adam": RegistryEntry(build_adam, {"lr": ADAMS_LR}, "Adam"),
    "adamw": RegistryEntry(
        build_adamw,
        {"lr": ADAMS_LR, "weight_decay": DECOUPLED_DECAY},
        "Adam with decoupled weight decay",
    ),
    "sgd": RegistryEntry(
        build_sgd,
        {
            "lr": Float(1e-4, 1.0, default=5e-2, log=True),
            "momentum": Float(0.5, 0.99, default=0.9),
            "weight_decay": COUPLED_DECAY,
        },
        "SGD with Nesterov momentum",
    ),
    "rmsprop": RegistryEntry(
        build_rmsprop,
        {
            # The mean square starts at zero, uncorrected, and momentum sums up ten steps: the
            # first steps are some 1 / sqrt(1 - alpha) times the rate, later ones ten times.
            "lr": Float(1e-6, 1e-2, default=1e-4, log=True),
            "momentum": Float(0.0, 0.99, default=0.9),
            "alpha": Float(0.9, 0.999, default=0.99),
            "weight_decay": Float(1e-8, 1e-3, default=1e-5, log=True),
        },
        "RMSprop with momentum",
    ),
    "lion": RegistryEntry(
        build_lion,
        {
            # Every weight moves by the whole rate in each step, so the paper (section 5) takes a
            # rate three to ten times smaller than AdamW's, and a decay larger by as much.
            "lr": Float(1e-6, 1e-2, default=1e-4, log=True),
            "weight_decay": Float(1e-5, 1.0, default=1e-1, log=True),
        },
        "the sign of the momentum",
    ),
    "nadam": RegistryEntry(
        build_nadam,
        {"lr": ADAMS_LR, "weight_decay": DECOUPLED_DECAY},
        "Adam with Nesterov momentum and decoupled weight decay",
    ),
}

#: Those that torch can compute in one kernel.
FUSED = (Adam, AdamW, SGD)


def build_optimizer(component: ComponentConfig, parameters: Iterable[Parameter]) -> Optimizer:
    """The picked optimizer; InputError if the component is not in the table.

    Where the row has a weight decay there are two parameter groups, either of which may be
    empty: the first holds the weights of two or more dimensions, and decays; the second holds
    biases and the weights of normalisation layers, and does not. Every group has the same "lr".
    """
    decays = "weight_decay" in lookup("optimizer", OPTIMIZERS, component.name).space
    given = _groups(parameters) if decays else parameters
    optimizer: Optimizer = build("optimizer", OPTIMIZERS, component, given)
    if isinstance(optimizer, FUSED) and _on_cuda(optimizer):
        _fuse(optimizer)
    return optimizer


def _on_cuda(optimizer: Optimizer) -> bool:
    return all(p.is_cuda for group in optimizer.param_groups for p in group["params"])


def _fuse(optimizer: Optimizer) -> None:
    """One kernel for all weights rather than several for each operation; CUDA has it."""
    optimizer.defaults["fused"] = True
    for group in optimizer.param_groups:
        group["fused"] = True


def _groups(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    # He et al., arXiv:1812.01187, section 3.1. Decay guards against large filters, of which
    # there are many. A bias or a normalisation's scale is one number a channel: too few to
    # overfit, and pulled to zero it would shut the channel or push its output to the middle,
    # away from the rare lesion pixels.
    listed = list(parameters)
    return [
        {"params": [p for p in listed if p.ndim >= 2]},
        {"params": [p for p in listed if p.ndim < 2], "weight_decay": 0.0},
    ]
