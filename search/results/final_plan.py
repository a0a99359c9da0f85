"""How many networks the final test trains and for how long, fitted to the time that is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from search.study.forecast import START_S

#: Part of the time that is left that a forecast may fill.
TIME_SHARE = 0.92
#: Part of it that predictions of an ensemble with test-time augmentation may take.
PREDICTION_SHARE = 0.25
#: Part of it that the selection of post-processing may take; else no inference steps are selected.
SELECTION_SHARE = 0.25
#: Epochs and seeds that more time than planned is used for.
MAX_EPOCHS_FACTOR, MAX_SEEDS = 1.5, 3


@dataclass(frozen=True)
class FinalPlan:
    """Numbers of finalists, of seeds and epochs of each, and the largest number of members.

    selection: whether inference steps are selected, if the study file has any.
    """

    finalists: int
    seeds: int
    epochs: int
    ensemble: int
    selection: bool = True


@dataclass(frozen=True)
class FinalCosts:
    """Measured or estimated durations.

    fit_on: as in ``FinalSpec``.
    slots: trainings at the same time.
    kept: networks of the search that may become members of the ensemble.
    epoch_s: an epoch on the training images, with its validation.
    joint_epoch_s: an epoch on training and validation images, with its validation.
    judge_s: predictions of a candidate for the validation images, to select the ensemble.
    member_s: predictions of a member for validation and test images, with all views.
    fixed_s: what does not depend on the plan: scores, report.
    selection_s: selection of post-processing.
    """

    fit_on: Literal["train", "train_val"]
    slots: int
    kept: int
    epoch_s: float
    joint_epoch_s: float
    judge_s: float
    member_s: float
    fixed_s: float
    selection_s: float = 0.0

    def training_s(self, plan: FinalPlan) -> float:
        """Return the duration of all trainings."""
        total = 0.0
        if self.fit_on == "train" or plan.finalists > 1:
            total += self._rounds(plan.finalists * plan.seeds, plan.epochs * self.epoch_s)
        if self.fit_on == "train_val":
            total += self._rounds(plan.seeds, plan.epochs * self.joint_epoch_s)
        return total

    def after_s(self, plan: FinalPlan) -> float:
        """Return the duration of everything after the trainings."""
        networks = plan.finalists * plan.seeds + self.kept
        members = min(plan.ensemble, networks)
        selection_s = self.selection_s if plan.selection else 0.0
        return networks * self.judge_s + members * self.member_s + selection_s + self.fixed_s

    def forecast_s(self, plan: FinalPlan) -> float:
        """Return the duration of the final test."""
        return self.training_s(plan) + self.after_s(plan)

    def affordable_members(self, limit: int, available_s: float) -> int:
        """Return the largest number of members, 1 to ``limit``, whose predictions fit."""
        affordable = available_s / self.member_s if self.member_s > 0 else math.inf
        return max(1, int(min(limit, affordable)))

    def _rounds(self, trainings: int, seconds: float) -> float:
        return math.ceil(trainings / self.slots) * (START_S + seconds)


def fit_to_time(planned: FinalPlan, left_s: float, costs: FinalCosts) -> FinalPlan:
    """Return the plan for the time that is left.

    The number of members is limited first, and inference steps are not selected if that would take
    too large a part of the time. With too little time, epochs are reduced down to half of
    the planned ones, then seeds, then finalists, then epochs further; what the last reduction
    leaves is used for epochs again. With more time than planned, epochs are raised up to
    MAX_EPOCHS_FACTOR times, and then, where an ensemble is allowed, seeds up to MAX_SEEDS.

    Args:
        planned: what the study asks for.
        left_s: seconds until the end of the study.
        costs: durations on this machine.
    """
    available_s = PREDICTION_SHARE * left_s
    plan = replace(
        planned,
        ensemble=costs.affordable_members(planned.ensemble, available_s),
        selection=costs.selection_s <= SELECTION_SHARE * left_s,
    )

    def fits(plan: FinalPlan) -> bool:
        return costs.forecast_s(plan) <= TIME_SHARE * left_s

    if not fits(plan):
        plan = replace(plan, epochs=math.ceil(planned.epochs / 2))
        plan = _largest(plan, "seeds", 1, planned.seeds, fits)
        plan = _largest(plan, "finalists", 1, planned.finalists, fits)
        return _largest(plan, "epochs", 1, planned.epochs, fits)
    most_epochs = math.floor(MAX_EPOCHS_FACTOR * planned.epochs)
    plan = _largest(plan, "epochs", planned.epochs, most_epochs, fits)
    if plan.epochs == most_epochs and plan.ensemble > 1:
        plan = _largest(plan, "seeds", planned.seeds, max(planned.seeds, MAX_SEEDS), fits)
    return plan


def _largest(
    plan: FinalPlan,
    field: Literal["finalists", "seeds", "epochs"],
    low: int,
    high: int,
    fits: Callable[[FinalPlan], bool],
) -> FinalPlan:
    """Return the plan with the largest value from ``low`` to ``high`` that fits, else with ``low``.

    A larger value takes at least as long.
    """

    def with_value(value: int) -> FinalPlan:
        changes: dict[str, Any] = {field: value}
        return replace(plan, **changes)

    while low < high:
        middle = (low + high + 1) // 2
        if fits(with_value(middle)):
            low = middle
        else:
            high = middle - 1
    return with_value(low)
