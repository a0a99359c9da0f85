"""Optimizers and learning-rate schedules."""

from lesionseg.optim.optimizers import OPTIMIZERS, build_optimizer
from lesionseg.optim.schedules import SCHEDULES, Schedule, build_schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "Schedule", "build_optimizer", "build_schedule"]
