"""Values, constraints and attributes of a running trial, as the storage and Optuna hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from lesionseg.runtime.files import atomic_write
from lesionseg.training.types import EpochRecord
from search.storage.lease_types import Claim
from search.storage.optuna_internals import cached_trial
from search.storage.trial_records import EndReason
from search.trial_process.protocol import ModelBuilt, flatten_record
from search.workers.trial_context import TrialContext


class TrialReporter:
    """Reports one claimed trial."""

    def __init__(self, context: TrialContext, claim: Claim, trial: optuna.Trial) -> None:
        self.leases, self.constraints = context.leases, context.spec.constraints
        self.claim, self.trial = claim, trial
        self._has_constraints = False

    def report(self, step: int, dice: float) -> None:
        """Report a value; it replaces that of an attempt that ran out of memory."""
        if step in cached_trial(self.trial).intermediate_values:
            self.restore({step: dice})
        else:
            self.trial.report(dice, step)

    def restore(self, values: Mapping[int, float]) -> None:
        """Write values by step, over existing ones."""
        self.leases.record_epochs(self.claim, values)
        cached_trial(self.trial).intermediate_values.update(values)

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Write user attributes."""
        self.leases.set_trial_attrs(self.claim, attrs)

    def check_constraints(self, model: ModelBuilt) -> bool:
        """Write a model's size; return whether it violates a constraint of the study."""
        attrs: dict[str, Any] = {"params": model.params, "macs": model.macs}
        violations = []
        for key, value, limit, unit in (
            (
                "max_params_m",
                model.params / 1e6,
                self.constraints.max_params_m,
                "million parameters",
            ),
            (
                "max_gmacs",
                model.macs / 1e9,
                self.constraints.max_gmacs,
                "billion multiply-adds an image",
            ),
        ):
            if limit is None:
                continue
            if not self._has_constraints:
                self.trial.set_constraint(key, value - limit)
            # The dashboard shows user attributes, but not Optuna's constraints.
            attrs[f"constraint.{key}"] = round(value - limit, 6)
            if value > limit:
                violations.append(f"{value:.2f} {unit}; constraints.{key} is {limit:g}")
        if violations:
            attrs |= {"reason": EndReason.CONSTRAINT, "message": "; ".join(violations)}
        self._has_constraints = True
        self.set_attrs(attrs)
        return bool(violations)


def write_history(
    path: Path, histories: Sequence[Sequence[EpochRecord]], *, has_folds: bool
) -> None:
    """Write a row per epoch of all trainings; folds have a column ``fold``."""
    rows = [
        ({"fold": fold} if has_folds else {}) | flatten_record(record)
        for fold, history in enumerate(histories, 1)
        for record in history
    ]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    atomic_write(path, "".join(",".join(map(str, line)) + "\n" for line in lines))
