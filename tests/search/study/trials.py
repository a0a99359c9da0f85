"""Finished trials without a training."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState


def finished_trial(
    number: int, value: float | None, attrs: dict[str, Any], state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    """Return a trial with user attributes."""
    trial = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
    trial.number = number
    return trial
