"""The finalists: the best configurations of the search, trained again and compared."""

from __future__ import annotations

import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from search.errors import JobFailed
from search.results.retraining import (
    RetrainedModel,
    Retraining,
    RetrainingFailed,
    load_finished,
    retrain,
)
from search.results.slot_threads import run_on_slots
from search.storage import trial_records
from search.study.opening import OpenStudy
from search.trial_process.slot import Slot


@dataclass(frozen=True)
class Finalist:
    """A trial and its retrainings, at least one, by seed."""

    trial: FrozenTrial
    models: tuple[RetrainedModel, ...]

    @property
    def mean(self) -> float:
        """Mean validation Dice over the seeds."""
        return statistics.fmean(model.val_dice for model in self.models)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the validation Dice over the seeds; None for one."""
        dice = [model.val_dice for model in self.models]
        return statistics.stdev(dice) if len(dice) > 1 else None

    @property
    def best_model(self) -> RetrainedModel:
        """The seed with the best validation Dice, of equals the first."""
        return max(self.models, key=lambda model: model.val_dice)

    @property
    def mean_epoch(self) -> int:
        """Mean over the seeds of the best epoch, rounded."""
        return round(statistics.fmean(model.result.best.epoch for model in self.models))


def best_trials(study: optuna.Study, number: int = 1) -> list[FrozenTrial]:
    """Return the complete trials with the best validation Dice and distinct configurations.

    Configurations that differ only in the seed count as one.

    Raises:
        JobFailed: there is no complete trial; the message contains the reasons.
    """
    trials = trial_records.all_trials(study)
    distinct: dict[str, FrozenTrial] = {}
    for trial in trial_records.rank_trials(trials):
        config = trial_records.config_of(trial) | {"seed": None}
        distinct.setdefault(json.dumps(config, sort_keys=True), trial)
    if not distinct:
        counts = trial_records.count_reasons(trials)
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.items())
        raise JobFailed(f"{study.study_name}: no complete trial ({reasons or 'no trial was run'})")
    return list(distinct.values())[:number]


def search_dice(trial: FrozenTrial) -> float:
    """Return the Dice that a retraining repeats: the trial's, or that of its first fold."""
    folds = trial_records.folds_of(trial)
    return float(folds["dice"][0] if folds else trial.value or 0.0)


def choose(finalists: Sequence[Finalist]) -> Finalist:
    """Return the finalist with the best mean over its seeds, of equals the first."""
    return max(finalists, key=lambda finalist: finalist.mean)


@dataclass
class Trainings:
    """Runs the trainings of a final test in parallel, one on each slot.

    Attributes:
        opened: the study, with the cache of the final test.
        slots: where to train.
        folder: for weights and states; see ``retrain``.
        end: time of the monotonic clock at which all trainings must be finished.
        total: epochs of all trainings.
        on_progress: called with the completed epochs and ``total``.
        on_event: called with a message for each training that failed and is left out.
    """

    opened: OpenStudy
    slots: Sequence[Slot]
    folder: Path
    end: float = math.inf
    total: int = 0
    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_event: Callable[[str], None] = lambda message: None
    _done: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, retrainings: Sequence[Retraining], *, later: int = 0) -> list[Finalist]:
        """Train everything; return a finalist for each trial with a finished training.

        A training that fails for a reason of its own is reported and left out. If all fail, the
        first one's error is raised.

        Args:
            retrainings: what to train; those of a trial in sequence.
            later: number of trainings that follow in another call. The time until ``end`` is
                divided evenly.

        Raises:
            JobFailed: all trainings failed, or one failed for a reason that all others share.
        """
        outcomes: list[RetrainedModel | RetrainingFailed] = []
        missing = []
        for retraining in retrainings:
            if finished := load_finished(retraining, self.folder):
                outcomes.append(finished)
                self._report(retraining, retraining.config.epochs)
            else:
                missing.append(retraining)
        n = len(self.slots)
        rounds = -(-len(missing) // n) + -(-later // n)
        tasks = [partial(self._train, each, rounds - i // n) for i, each in enumerate(missing)]
        outcomes += run_on_slots(tasks, self.slots)
        errors = [outcome for outcome in outcomes if isinstance(outcome, RetrainingFailed)]
        if len(errors) == len(outcomes):
            raise errors[0]
        for error in errors:
            self.on_event(f"{error}; it is left out")
        models = [outcome for outcome in outcomes if isinstance(outcome, RetrainedModel)]
        trials = {each.trial.number: each.trial for each in retrainings}
        models.sort(key=lambda model: model.seed)
        by_trial = {n: tuple(m for m in models if m.trial == n) for n in trials}
        return [Finalist(trials[n], group) for n, group in by_trial.items() if group]

    def _train(
        self, retraining: Retraining, rounds: int, slot: Slot, must_suspend: Callable[[], bool]
    ) -> RetrainedModel | RetrainingFailed:
        """Train in the first of the rounds that the time is left for."""
        now = time.monotonic()
        try:
            return retrain(
                self.opened,
                slot,
                retraining,
                self.folder,
                deadline=now + (self.end - now) / rounds,
                must_suspend=must_suspend,
                on_epoch=partial(self._report, retraining),
            )
        except RetrainingFailed as error:
            return error

    def _report(self, retraining: Retraining, epochs: int) -> None:
        with self._lock:
            self._done[retraining.stem] = epochs
            self.on_progress(sum(self._done.values()), self.total)
