"""SCHEDULES: learning-rate schedules.

Every entry builds a scheduler of torch from the optimizer and the number T of optimizer steps;
step t of 0 .. T - 1 uses the rate lr(t). The optimizer's own learning rate is the maximum.
Parameter groups with different rates keep their ratios.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
)

from lesionseg.space import ComponentConfig, Float, Int, RegistryEntry, build


@dataclass
class Schedule:
    """A learning-rate scheduler, updated after every step, or after every epoch for plateau."""

    scheduler: LRScheduler | ReduceLROnPlateau

    def after_step(self) -> None:
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def after_epoch(self, val_dice: float) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(val_dice)


def build_step(optimizer: Optimizer, total: int, factor: float, drops: int) -> LRScheduler:
    """Build a decay at evenly spaced steps: lr(t) = lr(0) * factor^floor(t * (drops + 1) / T)."""
    parts = drops + 1
    # In integers: rounding could delay a drop by one step.
    milestones = [-(-total * part // parts) for part in range(1, parts)]
    return MultiStepLR(optimizer, milestones, gamma=factor)


def build_cosine(optimizer: Optimizer, total: int, warmup: float) -> LRScheduler:
    """Build a linear warm-up over a share of the steps, then half a cosine down to zero.

    Loshchilov and Hutter, arXiv:1608.03983, without restarts.
    """
    warm = round(warmup * total)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return LambdaLR(optimizer, factor)


def build_onecycle(optimizer: Optimizer, total: int, rise: float) -> LRScheduler:
    """Build one cycle up to the optimizer's learning rate and down; Smith, arXiv:1708.07120."""
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        # The schedule is updated after the last step too, which torch counts.
        total_steps=total + 1,
        # The peak is on an integer step: torch divides by zero if it falls on the first.
        pct_start=(max(1, round(rise * total)) + 1) / (total + 1),
        cycle_momentum=False,  # a parameter of the optimizer
    )


SCHEDULES: dict[str, RegistryEntry] = {
    "constant": RegistryEntry(
        lambda optimizer, total: LambdaLR(optimizer, lambda _: 1.0),
        {},
        "the learning rate as given",
    ),
    "step": RegistryEntry(
        build_step,
        {"factor": Float(0.1, 0.8, default=0.5), "drops": Int(1, 10, default=3)},
        "lower at evenly spaced moments",
    ),
    # lr(t) = lr(0) * end^(t / T)
    "exponential": RegistryEntry(
        lambda optimizer, total, end: ExponentialLR(optimizer, end ** (1 / total)),
        {"end": Float(1e-4, 0.5, default=1e-2, log=True)},
        "the same share off in every step",
    ),
    "cosine": RegistryEntry(
        build_cosine, {"warmup": Float(0.0, 0.5, default=0.05)}, "warm-up, then half a cosine to 0"
    ),
    "onecycle": RegistryEntry(
        build_onecycle, {"rise": Float(0.1, 0.5, default=0.3)}, "one cycle up and down"
    ),
    # lr(t) = lr(0) * (1 - t / T)^power: the "poly" policy of DeepLab (arXiv:1606.00915, section
    # 4.1.2) and of nnU-Net (arXiv:1904.08128), both with a power of 0.9.
    "polynomial": RegistryEntry(
        lambda optimizer, total, power: PolynomialLR(optimizer, total, power),
        {"power": Float(0.5, 2.0, default=0.9)},
        "a power of what is left, to 0",
    ),
    # By ``factor`` after ``patience`` + 1 epochs without a better Dice.
    "plateau": RegistryEntry(
        # Without ``eps``, which would keep small rates of single groups as they are.
        lambda optimizer, total, **options: ReduceLROnPlateau(
            optimizer, "max", threshold=0.0, eps=0.0, **options
        ),
        {"factor": Float(0.1, 0.8, default=0.5), "patience": Int(0, 20, default=3)},
        "lower when the validation Dice stands still",
    ),
}


def build_schedule(
    component: ComponentConfig, optimizer: Optimizer, epochs: int, steps: int
) -> Schedule:
    """Build a schedule over ``epochs`` x ``steps`` optimizer steps, each at least 1."""
    return Schedule(build("schedule", SCHEDULES, component, optimizer, epochs * steps))
