"""OPTIMIZERS and SCHEDULES.

A row of OPTIMIZERS builds from a network's parameters; a row of SCHEDULES from the optimizer,
the number of epochs and the steps in each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lesionseg.space import Float, Int, Option, Pick, build

Parameters = Iterable[Parameter]


def build_adam(parameters: Parameters, lr: float) -> Optimizer:
    """Adam; Kingma and Ba, arXiv:1412.6980."""
    return Adam(parameters, lr=lr)


def build_adamw(parameters: Parameters, lr: float, weight_decay: float) -> Optimizer:
    """Adam with decoupled weight decay; Loshchilov and Hutter, arXiv:1711.05101."""
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


def build_sgd(parameters: Parameters, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum; Sutskever et al., ICML 2013."""
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True)


OPTIMIZERS: dict[str, Option] = {
    "adam": Option(build_adam, {"lr": Float(1e-5, 1e-1, default=1e-3, log=True)}, "Adam"),
    "adamw": Option(
        build_adamw,
        {
            "lr": Float(1e-5, 1e-1, default=1e-3, log=True),
            "weight_decay": Float(1e-6, 1e-1, default=1e-2, log=True),
        },
        "Adam with decoupled weight decay",
    ),
    "sgd": Option(
        build_sgd,
        {
            "lr": Float(1e-4, 1.0, default=5e-2, log=True),
            "momentum": Float(0.5, 0.99, default=0.9),
            "weight_decay": Float(1e-6, 1e-2, default=1e-4, log=True),
        },
        "SGD with Nesterov momentum",
    ),
}


@dataclass
class Schedule:
    """A learning-rate scheduler and when it moves: after every step or after every epoch."""

    scheduler: LRScheduler | ReduceLROnPlateau
    moves: Literal["step", "epoch"]

    def after_step(self) -> None:
        """To be called after each optimizer step."""
        if self.moves == "step":
            assert isinstance(self.scheduler, LRScheduler)
            self.scheduler.step()

    def after_epoch(self, val_dice: float) -> None:
        """To be called after each epoch with the validation Dice, of which more is better."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(val_dice)
        elif self.moves == "epoch":
            self.scheduler.step()


def build_constant(optimizer: Optimizer, epochs: int, steps: int) -> Schedule:
    """The learning rate as given."""
    return Schedule(LambdaLR(optimizer, lambda _: 1.0), "epoch")


def build_cosine(optimizer: Optimizer, epochs: int, steps: int, warmup: float) -> Schedule:
    """Linear warm-up over the first share of the steps, then half a cosine down to zero.

    Loshchilov and Hutter, arXiv:1608.03983, without restarts.
    """
    total = max(1, epochs * steps)
    rising = round(warmup * total)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))

    return Schedule(LambdaLR(optimizer, factor), "step")


def build_onecycle(optimizer: Optimizer, epochs: int, steps: int, rise: float) -> Schedule:
    """One cycle up to the optimizer's learning rate and down again; Smith, arXiv:1708.07120."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    # The optimizer's last step is one more than the cycle has moves for: torch refuses it.
    total = epochs * steps + 1
    # The peak is put on a whole step: torch's may fall between two, and divides by zero where
    # it falls on the first. The momentum is the optimizer's own parameter and stays as given.
    start = (max(1, round(rise * (total - 1))) + 1) / total
    return Schedule(
        OneCycleLR(
            optimizer, max_lr=peaks, total_steps=total, pct_start=start, cycle_momentum=False
        ),
        "step",
    )


def build_plateau(
    optimizer: Optimizer, epochs: int, steps: int, factor: float, patience: int
) -> Schedule:
    """Times ``factor`` after ``patience`` + 1 epochs without a better validation Dice."""
    scheduler = ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, threshold=0.0
    )
    return Schedule(scheduler, "epoch")


SCHEDULES: dict[str, Option] = {
    "constant": Option(build_constant, {}, "the learning rate as given"),
    "cosine": Option(
        build_cosine, {"warmup": Float(0.0, 0.5, default=0.05)}, "warm-up, then half a cosine to 0"
    ),
    "onecycle": Option(
        build_onecycle, {"rise": Float(0.1, 0.5, default=0.3)}, "one cycle up and down"
    ),
    "plateau": Option(
        build_plateau,
        {"factor": Float(0.1, 0.8, default=0.5), "patience": Int(0, 20, default=3)},
        "lower when the validation Dice stands still",
    ),
}


def build_optimizer(pick: Pick, parameters: Parameters) -> Optimizer:
    """The picked optimizer; InputError if the pick is not in the table."""
    optimizer: Optimizer = build("optimizer", OPTIMIZERS, pick, parameters)
    return optimizer


def build_schedule(pick: Pick, optimizer: Optimizer, epochs: int, steps: int) -> Schedule:
    """The picked schedule over ``epochs`` x ``steps`` optimizer steps."""
    schedule: Schedule = build("schedule", SCHEDULES, pick, optimizer, epochs, steps)
    return schedule
