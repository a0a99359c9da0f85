"""Notifications about trials."""

from __future__ import annotations

from typing import Protocol

from optuna.trial import FrozenTrial

from lesionseg.config import TrialConfig
from lesionseg.training.types import EpochRecord


class TrialListener(Protocol):
    """Receives the progress of trials; the command line shows it."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Handle the start of a trial's training."""

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Handle the end of an epoch."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Handle the end of a trial. best: the best complete trial so far."""


class NullListener:
    """A listener that does nothing."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Do nothing."""

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Do nothing."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Do nothing."""
