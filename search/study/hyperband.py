"""Hyperband that reads the trials at rungs only."""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence
from datetime import datetime

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.storage import trial_records
from search.storage.optuna_internals import storage_of, trial_id

#: One of this many trials passes a rung; the next rung is at this many times the epochs.
FACTOR = 3


class Hyperband(BasePruner):
    """Decide like ``optuna.pruners.HyperbandPruner`` (Li et al., arXiv:1603.06560), at less cost.

    The rungs of bracket b are at min_epochs x FACTOR ** b, x FACTOR ** (b + 1) and so on. A trial
    belongs to one bracket, by a hash of the study's name and the trial's number, and competes with
    the trials of its bracket that reached the rung. No trial is stopped between rungs; Optuna reads
    all trials there, too. Values at rungs are stored under Optuna's names, so that a study that was
    started with Optuna's pruner can be continued.

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
        # The latest trial and the number of its passed rungs; of others these are read.
        self._latest: tuple[tuple[str, int, datetime | None], int] | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is at a rung and not among the best third."""
        epoch = trial.last_step
        if not self.shares or epoch is None:
            return False
        first_number = trial_records.first_number(trial)
        bracket = self.bracket_of(study.study_name, first_number)
        if epoch < self.rung_epoch(bracket, 0):
            return False
        rung = self._count_passed_rungs(study, trial)
        trials: list[FrozenTrial] | None = None
        while epoch >= (rung_epoch := self.rung_epoch(bracket, rung)):
            values = trial.intermediate_values
            if first_number != trial.number and rung_epoch < epoch and rung_epoch in values:
                # A requeued trial passed this rung in an earlier attempt.
                self._store(study, trial, rung, values[rung_epoch])
                rung += 1
                continue
            if math.isnan(values[epoch]):
                return True
            trials = trials or study.get_trials(deepcopy=False)
            rivals = self._rung_values(study, trials, bracket, rung)
            self._store(study, trial, rung, values[epoch])
            if not is_among_best(values[epoch], rivals, study.direction):
                return True
            rung += 1
        return False

    def bracket_of(self, study_name: str, number: int) -> int:
        """Return the bracket, from 0, of a trial's number."""
        remainder = binascii.crc32(f"{study_name}_{number}".encode()) % sum(self.shares)
        for bracket, share in enumerate(self.shares):
            remainder -= share
            if remainder < 0:
                return bracket
        raise AssertionError("the remainder is less than the sum of the shares")

    def rung_epoch(self, bracket: int, rung: int) -> int:
        """Return the epoch, from 1, of a bracket's rung, from 0."""
        epoch: int = self.min_epochs * FACTOR ** (bracket + rung)
        return epoch

    def _count_passed_rungs(self, study: optuna.Study, trial: FrozenTrial) -> int:
        key = (study.study_name, trial_id(trial), trial.datetime_start)
        if self._latest is None or self._latest[0] != key:
            attrs = trial.system_attrs  # one query for a running trial
            self._latest = key, next(r for r in range(len(attrs) + 1) if _key(r) not in attrs)
        return self._latest[1]

    def _store(self, study: optuna.Study, trial: FrozenTrial, rung: int, value: float) -> None:
        storage_of(study).set_trial_system_attr(trial_id(trial), _key(rung), value)
        self._latest = (study.study_name, trial_id(trial), trial.datetime_start), rung + 1

    def _rung_values(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], bracket: int, rung: int
    ) -> list[float]:
        name, key = study.study_name, _key(rung)
        return [
            t.system_attrs[key]
            for t in trials
            if key in t.system_attrs
            and not trial_records.was_interrupted(t)
            and self.bracket_of(name, trial_records.first_number(t)) == bracket
        ]


def is_among_best(value: float, rivals: Sequence[float], direction: StudyDirection) -> bool:
    """Return whether a value is in the best third, rounded down, or the best of all."""
    ranked = sorted([*rivals, value], reverse=direction == StudyDirection.MAXIMIZE)
    last = ranked[max(len(ranked) // FACTOR, 1) - 1]
    return value >= last if direction == StudyDirection.MAXIMIZE else value <= last


def _key(rung: int) -> str:
    """Return the system attribute in which Optuna's pruner stores the value at a rung."""
    return f"completed_rung_{rung}"
