"""OPTIMIZERS and SCHEDULES: how the weights move, and how fast over the training."""

from lesionseg.optim.optimizers import OPTIMIZERS, build_optimizer
from lesionseg.optim.schedules import SCHEDULES, Schedule, build_schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "Schedule", "build_optimizer", "build_schedule"]
