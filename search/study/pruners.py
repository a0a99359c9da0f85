"""PRUNERS: which trials are not worth going on with, judged by their validation Dice."""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable, Mapping
from datetime import datetime

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.storage import trial_records
from search.storage.optuna_internals import storage_of, trial_id

#: Of this many trials hyperband lets one pass a rung; the next is at this many times the epochs.
FACTOR = 3


def build_median(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Stops a trial whose best so far is below the median of the others at the same epoch.

    Golovin et al., KDD 2017 (Vizier's median stopping rule).
    """
    # Its warm-up counts steps from 0, our epochs count from 1: it judges from min_epochs on.
    return _Median(n_startup_trials=startup, n_warmup_steps=min_epochs)


def build_halving(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Successive halving of all trials, half of them with time to start slowly.

    Half of those at a rung pass it: at min_epochs, 2 x min_epochs, 4 x min_epochs, ...
    Asynchronous as in Li et al., arXiv:1810.05934.
    """
    return Halving(min_epochs, epochs)


def build_hyperband(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Successive halving with several first rungs; Li et al., arXiv:1603.06560.

    A third of the trials passes each rung: at min_epochs, 3 x min_epochs, ...
    """
    return Hyperband(min_epochs, epochs)


def build_none(epochs: int, min_epochs: int, startup: int) -> BasePruner:
    """Every trial is trained to its end."""
    return NopPruner()


class _Median(MedianPruner):
    """Optuna's, which reads all trials before it looks whether the epoch is to be judged."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        epoch = trial.last_step
        if epoch is None or epoch < self._n_warmup_steps:
            return False
        return super().prune(study, trial)


class Hyperband(BasePruner):
    """Decides as ``optuna.pruners.HyperbandPruner``, and reads the trials at rungs only.

    Bracket b has rungs at min_epochs x FACTOR ** b, times FACTOR again and again. A trial belongs
    to one bracket, by a hash of the study's name and its number, and competes with those of its
    bracket that reached the rung. Between rungs nobody can be stopped: there Optuna reads every
    trial, here none is read. Values at rungs are stored under Optuna's own names: a study that
    began with its pruner goes on with this one.

    Optuna's samplers see only the bracket's trials where the pruner is an HyperbandPruner, which
    made a grid repeat itself; this is none, and every sampler sees all.

    min_epochs, epochs: at least 1; nobody is stopped where epochs is the smaller.
    """

    def __init__(self, min_epochs: int, epochs: int) -> None:
        self.min_epochs = min_epochs
        brackets = math.floor(math.log(epochs / min_epochs, FACTOR)) + 1
        #: A bracket's share of the trials: Li et al., algorithm 1, up to a common factor.
        self.shares = [math.ceil(brackets * FACTOR**s / (s + 1)) for s in reversed(range(brackets))]
        # The trial asked about last and how many rungs it has behind it; else they are read.
        self._last: tuple[tuple[str, int, datetime | None], int] | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial, at its latest epoch, is not among the best third at a rung."""
        epoch = trial.last_step
        if not self.shares or epoch is None:
            return False
        first = trial_records.first_number(trial)
        bracket = self.bracket_of(study.study_name, first)
        if epoch < self.rung_epoch(bracket, 0):
            return False
        rung = self._rungs_behind(study, trial)
        known: list[FrozenTrial] | None = None
        while epoch >= self.rung_epoch(bracket, rung):
            at = self.rung_epoch(bracket, rung)
            value = trial.intermediate_values[epoch]
            if first != trial.number and at < epoch and at in trial.intermediate_values:
                # It passed this rung under another number, with what it was worth then.
                self._store(study, trial, rung, trial.intermediate_values[at])
                rung += 1
                continue
            if math.isnan(value):
                return True
            known = known or study.get_trials(deepcopy=False)
            rivals = self._rivals(study, known, bracket, rung)
            self._store(study, trial, rung, value)
            if not is_among_best(value, rivals, study.direction):
                return True
            rung += 1
        return False

    def bracket_of(self, study_name: str, number: int) -> int:
        """The bracket, from 0, that a trial of this number is dealt to."""
        left = binascii.crc32(f"{study_name}_{number}".encode()) % sum(self.shares)
        for bracket, share in enumerate(self.shares):
            left -= share
            if left < 0:
                return bracket
        raise AssertionError("the remainder is below the sum of the shares")

    def rung_epoch(self, bracket: int, rung: int) -> int:
        """The epoch, from 1, of a bracket's rung, from 0."""
        epoch: int = self.min_epochs * FACTOR ** (bracket + rung)
        return epoch

    def _rungs_behind(self, study: optuna.Study, trial: FrozenTrial) -> int:
        who = (study.study_name, trial_id(trial), trial.datetime_start)
        if self._last is None or self._last[0] != who:
            attrs = trial.system_attrs  # each look at it is a query where the trial is running
            self._last = who, next(r for r in range(len(attrs) + 1) if _key(r) not in attrs)
        return self._last[1]

    def _store(self, study: optuna.Study, trial: FrozenTrial, rung: int, value: float) -> None:
        storage_of(study).set_trial_system_attr(trial_id(trial), _key(rung), value)
        self._last = (study.study_name, trial_id(trial), trial.datetime_start), rung + 1

    def _rivals(
        self, study: optuna.Study, known: list[FrozenTrial], bracket: int, rung: int
    ) -> list[float]:
        name, key = study.study_name, _key(rung)
        there = [t for t in known if key in t.system_attrs and not trial_records.was_interrupted(t)]
        return [
            t.system_attrs[key]
            for t in there
            if self.bracket_of(name, trial_records.first_number(t)) == bracket
        ]


class Halving(BasePruner):
    """Stops a trial whose best so far is not in the better half of all that came to a rung.

    What counts is the best epoch so far, not the last: a learning curve at a high rate dips, and
    it is the best epoch that a trial is judged by in the end. One trial alone, or the best of
    those at a rung, always passes.

    Halves that are taken early are the cheapest, and wrong about whatever starts slowly. So one of
    every two trials, by lot, is judged from the rung PATIENT on only (or at the last), beside all
    others there. By lot, because the numbers of a quasi-random sampler say where in the space a
    trial lies. Without patient trials a sampler that learns from what it sees fills the rungs with
    trials of one kind, beside which no other kind passes any more, however good it would become.

    A rung is looked at when a trial is at its epoch, and other trials are read at no other time.

    min_epochs, epochs: at least 1; nobody is stopped where epochs is the smaller.
    """

    #: The first rung, from 0, at which patient trials are judged.
    PATIENT = 2

    def __init__(self, min_epochs: int, epochs: int) -> None:
        rungs = (min_epochs * 2**k for k in range(epochs.bit_length()))
        self.rungs = [epoch for epoch in rungs if epoch <= epochs]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial, at its latest epoch, is at a rung and not in the better half."""
        epoch = trial.last_step
        late = min(self.PATIENT, len(self.rungs) - 1)
        first = late if self.is_patient(study.study_name, trial_records.first_number(trial)) else 0
        if epoch is None or epoch not in self.rungs[first:]:
            return False
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        own = _best_until(trial, epoch, sign)
        if own is None:
            return True
        known = study.get_trials(deepcopy=False)
        rivals = [
            _best_until(other, epoch, sign)
            for other in known
            if epoch in other.intermediate_values
            and other.number != trial.number
            and not trial_records.was_interrupted(other)  # it goes on as another, maybe as this one
        ]
        better = sum(rival is not None and rival > own for rival in rivals)
        return better >= max((len(rivals) + 1) // 2, 1)

    @staticmethod
    def is_patient(study_name: str, number: int) -> bool:
        """Whether the trial of this number is: one of 0 and 1, one of 2 and 3, ..."""
        lot = binascii.crc32(f"{study_name}_{number // 2}".encode()) % 2
        return number % 2 == lot


def _best_until(trial: FrozenTrial, epoch: int, sign: int) -> float | None:
    """The best value up to an epoch, larger being better; None without a number."""
    values = [v for at, v in trial.intermediate_values.items() if at <= epoch]
    return max((sign * v for v in values if not math.isnan(v)), default=None)


def is_among_best(value: float, rivals: list[float], direction: StudyDirection) -> bool:
    """Whether it is among the best third, rounded down, of itself and its rivals.

    While that is nobody, it is enough to be the best.
    """
    ranked = sorted([*rivals, value], reverse=direction == StudyDirection.MAXIMIZE)
    last = ranked[max(len(ranked) // FACTOR, 1) - 1]
    return value >= last if direction == StudyDirection.MAXIMIZE else value <= last


def _key(rung: int) -> str:
    """The system attribute in which Optuna's pruner keeps a trial's value at a rung."""
    return f"completed_rung_{rung}"


PRUNERS: Mapping[str, Callable[[int, int, int], BasePruner]] = {
    "halving": build_halving,
    "median": build_median,
    "hyperband": build_hyperband,
    "none": build_none,
}
