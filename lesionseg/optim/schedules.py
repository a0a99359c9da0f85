"""SCHEDULES: learning-rate schedules.

Every entry builds a schedule from the optimizer, the number of epochs and the steps per epoch.
T = ``epochs`` x ``steps`` is the number of optimizer steps; step t of 0 .. T - 1 uses the rate
lr(t). The optimizer's own learning rate is the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

#: The variable state of torch's schedulers; the rest is determined by their arguments.
_STATE_KEYS = frozenset(
    {"last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter"}
)


@dataclass
class Schedule:
    """A learning-rate scheduler, updated after every step or after every epoch."""

    scheduler: LRScheduler | ReduceLROnPlateau
    interval: Literal["step", "epoch"]

    def after_step(self) -> None:
        """Update the learning rate after an optimizer step."""
        if self.interval == "step":
            assert isinstance(self.scheduler, LRScheduler)
            self.scheduler.step()

    def after_epoch(self, val_dice: float) -> None:
        """Update the learning rate after an epoch."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(val_dice)
        elif self.interval == "epoch":
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state; the optimizer's state contains the learning rates."""
        return {k: v for k, v in self.scheduler.state_dict().items() if k in _STATE_KEYS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of ``state_dict``; the optimizer's must be restored too."""
        self.scheduler.load_state_dict(self.scheduler.state_dict() | dict(state))


def build_constant(optimizer: Optimizer, epochs: int, steps: int) -> Schedule:
    """Build a constant learning rate."""
    return Schedule(LambdaLR(optimizer, lambda _: 1.0), "epoch")


def build_step(
    optimizer: Optimizer, epochs: int, steps: int, factor: float, drops: int
) -> Schedule:
    """Build a decay by ``factor`` at ``drops`` evenly spaced steps.

    lr(t) = lr(0) * factor^floor(t * (drops + 1) / T). Updated per step, so that a training of few
    epochs has all drops.
    """
    total, parts = epochs * steps, drops + 1
    # In integers: rounding could delay a drop by one step.
    milestones = [-(-total * part // parts) for part in range(1, parts)]
    return Schedule(MultiStepLR(optimizer, milestones, gamma=factor), "step")


def build_exponential(optimizer: Optimizer, epochs: int, steps: int, end: float) -> Schedule:
    """Build an exponential decay: lr(t) = lr(0) * end^(t / T)."""
    return Schedule(ExponentialLR(optimizer, end ** (1 / (epochs * steps))), "step")


def build_cosine(optimizer: Optimizer, epochs: int, steps: int, warmup: float) -> Schedule:
    """Build a linear warm-up over a share of the steps, then half a cosine down to zero.

    Loshchilov and Hutter, arXiv:1608.03983, without restarts.
    """
    total = epochs * steps
    warm = round(warmup * total)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return Schedule(LambdaLR(optimizer, factor), "step")


def build_onecycle(optimizer: Optimizer, epochs: int, steps: int, rise: float) -> Schedule:
    """Build one cycle up to the optimizer's learning rate and down; Smith, arXiv:1708.07120."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    # The schedule is updated after the last step too, which torch counts.
    total = epochs * steps + 1
    # The peak is on an integer step: torch divides by zero if it falls on the first. Momentum is
    # a parameter of the optimizer and is not cycled.
    start = (max(1, round(rise * (total - 1))) + 1) / total
    return Schedule(
        OneCycleLR(
            optimizer, max_lr=peaks, total_steps=total, pct_start=start, cycle_momentum=False
        ),
        "step",
    )


def build_polynomial(optimizer: Optimizer, epochs: int, steps: int, power: float) -> Schedule:
    """Build a decay to zero: lr(t) = lr(0) * (1 - t / T)^power.

    The "poly" policy of DeepLab (Chen et al., arXiv:1606.00915, section 4.1.2) and of nnU-Net
    (Isensee et al., arXiv:1904.08128), both with a power of 0.9.
    """
    return Schedule(PolynomialLR(optimizer, total_iters=epochs * steps, power=power), "step")


def build_plateau(
    optimizer: Optimizer, epochs: int, steps: int, factor: float, patience: int
) -> Schedule:
    """Build a decay by ``factor`` after ``patience`` + 1 epochs without a better Dice."""
    scheduler = ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, threshold=0.0
    )
    return Schedule(scheduler, "epoch")


SCHEDULES: dict[str, RegistryEntry] = {
    "constant": RegistryEntry(build_constant, {}, "the learning rate as given"),
    "step": RegistryEntry(
        build_step,
        {"factor": Float(0.1, 0.8, default=0.5), "drops": Int(1, 10, default=3)},
        "lower at evenly spaced moments",
    ),
    "exponential": RegistryEntry(
        build_exponential,
        {"end": Float(1e-4, 0.5, default=1e-2, log=True)},
        "the same share off in every step",
    ),
    "cosine": RegistryEntry(
        build_cosine, {"warmup": Float(0.0, 0.5, default=0.05)}, "warm-up, then half a cosine to 0"
    ),
    "onecycle": RegistryEntry(
        build_onecycle, {"rise": Float(0.1, 0.5, default=0.3)}, "one cycle up and down"
    ),
    "polynomial": RegistryEntry(
        build_polynomial, {"power": Float(0.5, 2.0, default=0.9)}, "a power of what is left, to 0"
    ),
    "plateau": RegistryEntry(
        build_plateau,
        {"factor": Float(0.1, 0.8, default=0.5), "patience": Int(0, 20, default=3)},
        "lower when the validation Dice stands still",
    ),
}


def build_schedule(
    component: ComponentConfig, optimizer: Optimizer, epochs: int, steps: int
) -> Schedule:
    """Build a schedule over ``epochs`` x ``steps`` optimizer steps, each at least 1."""
    schedule: Schedule = build("schedule", SCHEDULES, component, optimizer, epochs, steps)
    return schedule
