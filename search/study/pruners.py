"""PRUNERS: the pruners that a study may name. All of them judge by the validation Dice."""

from __future__ import annotations

import binascii
import bisect
import itertools
import math
from collections.abc import Callable, Mapping

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
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
        value = _best_until(trial, epoch)
        if value is None:
            return True
        trials = trials_at(study, epoch)
        rivals = [_best_until(other, epoch) for other in trials if other.number != trial.number]
        better = sum(rival is not None and rival > value for rival in rivals)
        return better >= max((len(rivals) + 1) // 2, 1)

    @staticmethod
    def is_deferred(study_name: str, number: int) -> bool:
        """Return whether a trial is deferred: one of 0 and 1, one of 2 and 3 and so on."""
        random_bit = binascii.crc32(f"{study_name}_{number // 2}".encode()) % 2
        return number % 2 == random_bit


def trials_at(study: optuna.Study, step: int) -> list[FrozenTrial]:
    """Return the trials that reported a step, without interrupted ones: others continue these."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if step in trial.intermediate_values and not trial_records.was_interrupted(trial)
    ]


def _best_until(trial: FrozenTrial, epoch: int) -> float | None:
    """Return the largest value up to an epoch; None without a number."""
    values = [value for step, value in trial.intermediate_values.items() if step <= epoch]
    return max((value for value in values if not math.isnan(value)), default=None)


#: One of this many trials passes a rung; the next rung is at this many times the epochs.
FACTOR = 3


class Hyperband(BasePruner):
    """Decide like ``optuna.pruners.HyperbandPruner`` (Li et al., arXiv:1603.06560), at less cost.

    The rungs of bracket b are at min_epochs x FACTOR ** b, x FACTOR ** (b + 1) and so on. A trial
    belongs to one bracket, by a hash of the study's name and the trial's number, and competes with
    the trials of its bracket that reached the rung. No trial is stopped between rungs; Optuna reads
    all trials there, too, and stores the values at rungs a second time.

    This is not a subclass of HyperbandPruner: Optuna's samplers would see the bracket's trials
    only, and a grid would repeat itself.

    Args:
        min_epochs: Epoch of the first rung of bracket 0, at least 1.
        epochs: Largest number of epochs; if it is less than min_epochs, no trial is stopped.
    """

    def __init__(self, min_epochs: int, epochs: int) -> None:
        self.min_epochs = min_epochs
        n_brackets = math.floor(math.log(epochs / min_epochs, FACTOR)) + 1
        #: Share of each bracket in the trials: Li et al., algorithm 1, up to a common factor.
        self.shares = [
            math.ceil(n_brackets * FACTOR**s / (s + 1)) for s in reversed(range(n_brackets))
        ]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is at a rung and not among the best third."""
        epoch = trial.last_step
        if not self.shares or epoch is None:
            return False
        bracket = self.bracket_of(study.study_name, trial_records.first_number(trial))
        rung = self.min_epochs * FACTOR**bracket
        while rung < epoch:
            rung *= FACTOR
        if epoch != rung:
            return False
        values = [
            other.intermediate_values[epoch]
            for other in trials_at(study, epoch)
            if self.bracket_of(study.study_name, trial_records.first_number(other)) == bracket
        ]
        ranked = sorted((value for value in values if not math.isnan(value)), reverse=True)
        best = ranked[: max(len(ranked) // FACTOR, 1)]
        return not best or not trial.intermediate_values[epoch] >= best[-1]

    def bracket_of(self, study_name: str, number: int) -> int:
        """Return the bracket, from 0, of a trial's number."""
        position = binascii.crc32(f"{study_name}_{number}".encode()) % sum(self.shares)
        return bisect.bisect(list(itertools.accumulate(self.shares)), position)


#: The builders take the most and the fewest epochs and the number of startup trials.
PRUNERS: Mapping[str, Callable[[int, int, int], BasePruner]] = {
    "halving": lambda epochs, min_epochs, startup: Halving(min_epochs, epochs),
    # Vizier's median stopping rule; Golovin et al., KDD 2017.
    "median": lambda epochs, min_epochs, startup: MedianPruner(startup, min_epochs),
    "hyperband": lambda epochs, min_epochs, startup: Hyperband(min_epochs, epochs),
    "none": lambda epochs, min_epochs, startup: NopPruner(),
}
