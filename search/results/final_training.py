"""All trainings of a final test: the finalists, and the chosen one on all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import FrozenTrial

from lesionseg.data.cache import Progress
from search.results.final_time import Schedule, final_config
from search.results.finalists import Finalist, Trainings, choose
from search.results.retraining import RetrainedModel, Retraining
from search.results.slot_threads import join_slots, share_slots
from search.study.opening import OpenStudy
from search.trial_process.slot import Slot


@dataclass(frozen=True)
class FinalSetup:
    """What a final test works with.

    search: the study, with the cache of its trials.
    final: the same study with the cache of the final test.
    trials: those that may be finalists, the best first.
    slots: where to train.
    schedule: what is trained, and when it must be finished.
    on_event: called with messages.
    """

    search: OpenStudy
    final: OpenStudy
    trials: Sequence[FrozenTrial]
    slots: Sequence[Slot]
    schedule: Schedule
    on_event: Callable[[str], None]

    @property
    def is_joint(self) -> bool:
        """Whether the tested networks are trained on the validation images too."""
        return self.search.spec.final.fit_on == "train_val"

    @property
    def has_size_of_search(self) -> bool:
        """Whether the images are as large as in the search."""
        return self.final.cache.image_size == self.search.cache.image_size

    @property
    def is_repetition(self) -> bool:
        """Whether image size and epochs are those of the search."""
        epochs = self.search.spec.budget.epochs
        return self.has_size_of_search and self.schedule.plan.epochs == epochs

    @property
    def slot(self) -> Slot:
        """Where everything but the trainings is computed."""
        return join_slots(self.slots)


@dataclass(frozen=True)
class Retrained:
    """Result of the trainings.

    finalists: those that were compared on the validation images; empty if the only one was trained
        on them.
    chosen: the chosen finalist.
    tested: the chosen configuration's networks that may be tested: ``chosen``, or the networks that
        were trained on training and validation images.
    """

    finalists: tuple[Finalist, ...]
    chosen: Finalist
    tested: Finalist

    @property
    def models(self) -> list[RetrainedModel]:
        """All retrained networks."""
        finalists = [each for each in self.finalists if each is not self.tested]
        return [model for each in (self.tested, *finalists) for model in each.models]


def train_finalists(setup: FinalSetup, folder: Path, on_progress: Progress) -> Retrained:
    """Train and compare the finalists; train the chosen one on all images if the study says so.

    Args:
        setup: what to train.
        folder: for weights and states.
        on_progress: called with the completed and the total epochs.

    Raises:
        JobFailed: see ``Trainings.run``.
    """
    plan = setup.schedule.plan
    trials = setup.trials[: plan.finalists]
    joint = plan.seeds if setup.is_joint else 0
    compared = 0 if setup.is_joint and len(trials) == 1 else len(trials) * plan.seeds
    trainings = Trainings(
        setup.final,
        _training_slots(setup, compared or joint),
        folder,
        setup.schedule.training_end,
        plan.epochs * (compared + joint),
        on_progress,
        setup.on_event,
    )
    if not compared:
        (only,) = trainings.run(_joint_retrainings(setup, trials[0], _last_epoch(setup)))
        return Retrained((), only, only)
    retrainings = [each for trial in trials for each in _retrainings(setup, trial)]
    finalists = tuple(trainings.run(retrainings, later=joint))
    chosen = choose(finalists)
    if not joint:
        return Retrained(finalists, chosen, chosen)
    (tested,) = trainings.run(_joint_retrainings(setup, chosen.trial, chosen.mean_epoch))
    return Retrained(finalists, chosen, tested)


def _training_slots(setup: FinalSetup, trainings: int) -> Sequence[Slot]:
    """Return the slots of the trainings, which share all threads.

    A repetition of the search's training has the slots of the search: on a CPU, results are
    bit-identical only with the same number of threads.
    """
    if setup.is_repetition and setup.schedule.left_s is None:
        return setup.slots
    return share_slots(setup.slots, trainings)


def _retrainings(setup: FinalSetup, trial: FrozenTrial) -> list[Retraining]:
    """Return a retraining for each seed, on the training images."""
    plan = setup.schedule.plan
    config = final_config(trial, setup.search.spec, plan.epochs)
    seeds = [replace(config, seed=config.seed + i) for i in range(plan.seeds)]
    return [Retraining(trial, each, "train", each.epochs) for each in seeds]


def _joint_retrainings(setup: FinalSetup, trial: FrozenTrial, last_epoch: int) -> list[Retraining]:
    """Return a retraining for each seed, on training and validation images."""
    return [
        replace(each, fit_on="train_val", last_epoch=last_epoch)
        for each in _retrainings(setup, trial)
    ]


def _last_epoch(setup: FinalSetup) -> int:
    """Return the epoch at which to end without images to select one on.

    It is the trial's best epoch. At another image size, or with another number of epochs, that says
    little; a schedule ends with the last epoch.
    """
    if setup.is_repetition:
        return int(setup.trials[0].user_attrs["best_epoch"])
    return setup.schedule.plan.epochs
