"""Prints a line for each finished trial."""

from __future__ import annotations

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape

from lesionseg.config import TrialConfig
from lesionseg.training.types import EpochRecord
from search.monitoring.console import STATE_STYLES
from search.spec.formatting import format_config
from search.storage import trial_records
from search.storage.trial_records import TrialAttr


class TrialLog:
    """A ``TrialListener`` of the workers that prints finished trials."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Do nothing; the live view shows running trials."""

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """Do nothing; the live view shows running trials."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """Print the trial's number, state, Dice, cost or error, and configuration."""
        attrs = trial.user_attrs
        state, style = (
            trial_records.describe_state(trial),
            STATE_STYLES[trial_records.state_of(trial)],
        )
        value = trial.value
        if value is None and trial.last_step is not None:
            value = trial.intermediate_values[trial.last_step]
        dice = "     -" if value is None else f"{value:.4f}"
        cost = f"{attrs['epochs']:>3} epochs {attrs['seconds']:6.1f} s" if "epochs" in attrs else ""
        parts = [attrs.get(TrialAttr.MESSAGE) or cost, attrs.get(TrialAttr.BASELINE)]
        if TrialAttr.CONFIG in attrs:
            parts.append(format_config(attrs[TrialAttr.CONFIG]))
        details = escape("  ".join(part for part in parts if part))
        self.console.print(f"trial {trial.number:>3}  [{style}]{state:<8}[/]  {dice}  {details}")
