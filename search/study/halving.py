"""Successive halving that judges half of the trials from a later rung on."""

from __future__ import annotations

import binascii
import math

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.storage import trial_records


class Halving(BasePruner):
    """Stop trials that are not in the better half of all trials that reached a rung.

    Asynchronous successive halving (Li et al., arXiv:1810.05934) with rungs at min_epochs,
    2 x min_epochs, 4 x min_epochs and so on.

    Trials are compared by their best value so far, because learning curves at a high learning rate
    are not monotonic and the best epoch is what counts in the end. A single trial, and the best one
    at a rung, always pass.

    Early rungs are the cheapest, but wrong for slowly starting configurations. Therefore one of
    every two trials is deferred: it is judged from the rung DEFERRED_RUNG on, or at the last one,
    together with all others. Which one is random, because the number of a trial in a quasi-random
    sequence determines where it is in the search space. Without deferred trials, a sampler that
    learns fills the rungs with one kind of configuration, and no other kind passes any more.

    The trials are read only when a trial reaches a rung.

    Args:
        min_epochs: Epoch of the first rung, at least 1.
        epochs: Largest number of epochs; if it is less than min_epochs, no trial is stopped.
    """

    #: Index of the first rung at which deferred trials are judged.
    DEFERRED_RUNG = 2

    def __init__(self, min_epochs: int, epochs: int) -> None:
        rungs = (min_epochs * 2**k for k in range(epochs.bit_length()))
        self.rungs = [epoch for epoch in rungs if epoch <= epochs]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is at a rung and not in the better half."""
        epoch = trial.last_step
        first = 0
        if self.is_deferred(study.study_name, trial_records.first_number(trial)):
            first = min(self.DEFERRED_RUNG, len(self.rungs) - 1)
        if epoch is None or epoch not in self.rungs[first:]:
            return False
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        value = _best_until(trial, epoch, sign)
        if value is None:
            return True
        rivals = [
            _best_until(other, epoch, sign)
            for other in study.get_trials(deepcopy=False)
            if epoch in other.intermediate_values
            and other.number != trial.number
            and not trial_records.was_interrupted(other)  # another trial continues it
        ]
        better = sum(rival is not None and rival > value for rival in rivals)
        return better >= max((len(rivals) + 1) // 2, 1)

    @staticmethod
    def is_deferred(study_name: str, number: int) -> bool:
        """Return whether a trial is deferred: one of 0 and 1, one of 2 and 3 and so on."""
        random_bit = binascii.crc32(f"{study_name}_{number // 2}".encode()) % 2
        return number % 2 == random_bit


def _best_until(trial: FrozenTrial, epoch: int, sign: int) -> float | None:
    """Return the largest signed value up to an epoch; None without a number."""
    values = [value for step, value in trial.intermediate_values.items() if step <= epoch]
    return max((sign * value for value in values if not math.isnan(value)), default=None)
