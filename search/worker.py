"""One slot's work: claim a trial, train it in a child process, report, prune, tell."""

from __future__ import annotations

import csv
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import psutil
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lesionseg.config import TrialConfig
from lesionseg.train import EpochRecord, TrainResult
from search import trials
from search.child import Broke, Built, Child, Trained, TrainJob
from search.spec import StudySpec
from search.suggest import suggest

#: How often a trial may be lost with its worker and still be queued again.
MAY_BE_LOST = 3
#: Weights are kept for this many of the best trials.
KEEP_BEST = 3


@dataclass(frozen=True)
class Slot:
    """What a worker computes on: a device, and threads for the CPU's share."""

    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Material:
    """What every trial of a study trains and is judged on: positions in one cache."""

    cache: Path
    train: NDArray[np.int64]
    val: NDArray[np.int64]


class Listener(Protocol):
    """Who wants to know; the command line shows it."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """A trial was claimed and goes into its child process."""

    def epoch_ended(self, number: int, record: EpochRecord) -> None:
        """One of its epochs ended."""

    def trial_ended(self, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """It was told; best: the best complete trial so far."""


class Worker:
    """Runs the trials of one study in one slot, one after the other.

    keep: weights are kept for this many of the best trials; None keeps all.
    twins: a configuration that was tried already is trained once more.
    """

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        material: Material,
        folder: Path,
        slot: Slot,
        listener: Listener,
        deadline: Callable[[], bool] = lambda: False,
        keep: int | None = KEEP_BEST,
        twins: bool = False,
    ) -> None:
        self.study, self.spec, self.material = study, spec, material
        self.folder, self.slot, self.listener = folder, slot, listener
        self.deadline, self.keep, self.twins = deadline, keep, twins

    def run_one(self) -> FrozenTrial:
        """Claims and finishes one trial; its record afterwards.

        A training that fails is recorded and raises nothing. KeyboardInterrupt puts the trial
        back into the queue and goes on up.
        """
        trial = self.study.ask()
        try:
            self._run(trial)
        except KeyboardInterrupt:
            if requeue(self.study, trial.number, trials.INTERRUPTED):
                self._clean(trial.number)
            raise
        known = trials.all_trials(self.study)
        done, ranking = known[trial.number], trials.ranked(known)
        if self.keep is not None:
            drop_weights(self.folder, ranking[: self.keep])
        self.listener.trial_ended(done, ranking[0] if ranking else None)
        return done

    def _run(self, trial: optuna.Trial) -> None:
        trial.set_user_attr("owner", owner())
        given = trial.user_attrs.get(trials.GIVEN)
        config = TrialConfig.from_dict(given) if given else suggest(trial, self.spec.space)
        twin = trials.twin_of(config.digest(), trials.all_trials(self.study))
        if twin is not None and not self.twins:
            trial.set_user_attr("twin", twin.number)
            self._fail(trial, trials.DUPLICATE, f"the same configuration as trial {twin.number}")
            return
        trial.set_user_attr("config", config.to_dict())
        trial.set_user_attr("digest", config.digest())
        self.listener.trial_started(trial.number, config)
        with Child(self._job(trial.number, config)) as child:
            self._follow(trial, child)

    def _job(self, number: int, config: TrialConfig) -> TrainJob:
        return TrainJob(
            config.to_dict(),
            self.material.cache,
            self.material.train,
            self.material.val,
            self.slot.device,
            self.slot.threads,
            save_to=self._place(number) / "model.safetensors",
        )

    def _follow(self, trial: optuna.Trial, child: Child) -> None:
        history: list[EpochRecord] = []
        verdict: str | None = None
        for message in child.messages():
            match message:
                case Built():
                    verdict = self._refused(trial, message)
                    child.reply(stop=verdict is not None)
                case EpochRecord():
                    history.append(message)
                    self._record(trial.number, history)
                    trial.report(message.metrics.dice, message.epoch)
                    self.listener.epoch_ended(trial.number, message)
                    verdict = self._stop(trial, message)
                    child.reply(stop=verdict is not None)
                case Trained(result):
                    self._finish(trial, result, verdict)
                case Broke() if verdict == trials.CONSTRAINT:
                    self.study.tell(trial, state=TrialState.PRUNED)
                case Broke(reason, text, trace):
                    trial.set_user_attr("trace", trace[-4000:])
                    self._fail(trial, reason, text)

    def _refused(self, trial: optuna.Trial, built: Built) -> str | None:
        trial.set_user_attr("params", built.params)
        trial.set_user_attr("macs", built.macs)
        limits = self.spec.constraints
        told = []
        for key, value, limit, what in (
            ("max_params_m", built.params / 1e6, limits.max_params_m, "million parameters"),
            ("max_gmacs", built.macs / 1e9, limits.max_gmacs, "billion multiply-adds an image"),
        ):
            if limit is None:
                continue
            trial.set_constraint(key, value - limit)
            if value > limit:
                told.append(f"{value:.2f} {what}; constraints.{key} is {limit:g}")
        if not told:
            return None
        trial.set_user_attr("reason", trials.CONSTRAINT)
        trial.set_user_attr("message", "; ".join(told))
        return trials.CONSTRAINT

    def _stop(self, trial: optuna.Trial, record: EpochRecord) -> str | None:
        if record.epoch == self.spec.budget.epochs:
            return None  # it has run its course: nothing is saved by stopping it
        if trial.should_prune():
            return "pruned"
        # Out of time: the first complete trial is let through, or there would be no result.
        if self.deadline() and trials.ranked(trials.all_trials(self.study)):
            return "time"
        return None

    def _finish(self, trial: optuna.Trial, result: TrainResult, verdict: str | None) -> None:
        best = result.best
        trial.set_user_attr("best_epoch", best.epoch)
        trial.set_user_attr("epochs", len(result.history))
        trial.set_user_attr("val", asdict(best.metrics))
        trial.set_user_attr("seconds", round(result.seconds, 3))
        trial.set_user_attr("peak_memory", result.peak_memory)
        if result.stopped == "early":
            trial.set_user_attr("reason", "early stopping")
        if verdict is not None:
            if verdict == "time":
                trial.set_user_attr("reason", verdict)
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, best.metrics.dice)

    def _fail(self, trial: optuna.Trial, reason: str, text: str) -> None:
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("message", text)
        self.study.tell(trial, state=TrialState.FAIL)

    def _place(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def _record(self, number: int, history: list[EpochRecord]) -> None:
        path = self._place(number) / "history.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = flat(history[-1])
        with path.open("w" if len(history) == 1 else "a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if len(history) == 1:
                writer.writeheader()
            writer.writerow(row)

    def _clean(self, number: int) -> None:
        shutil.rmtree(self._place(number), ignore_errors=True)


def drop_weights(folder: Path, kept: Sequence[FrozenTrial]) -> None:
    """Deletes the weights of a study's trials but for these."""
    numbers = {t.number for t in kept}
    for weights in (folder / "trials").glob("*/model.safetensors"):
        if int(weights.parent.name) not in numbers:
            weights.unlink(missing_ok=True)


def flat(record: EpochRecord) -> dict[str, Any]:
    """An epoch as one row."""
    row = asdict(record)
    return {**{k: v for k, v in row.items() if k != "metrics"}, **row["metrics"]}


def owner() -> dict[str, Any]:
    """This process, told apart from a later one of the same number by its start."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": psutil.Process().create_time(),
    }


def is_gone(who: dict[str, Any] | None) -> bool:
    """Whether the process that held a trial is known to have ended: only its own host can say."""
    if who is None:
        return True
    if who["host"] != socket.gethostname():
        return False
    try:
        # A later process may have been given the same number.
        return abs(psutil.Process(who["pid"]).create_time() - float(who["since"])) > 1
    except psutil.NoSuchProcess:
        return True


def requeue(study: optuna.Study, number: int, reason: str) -> bool:
    """Closes a trial that was cut off and queues its parameters again; it counts once.

    One that was lost with its worker MAY_BE_LOST times and once more is taken for what kills its
    worker: it fails for good.

    Returns False, having done nothing, where the trial had reached its end. Queued first, closed
    second: a process killed between the two leaves a double, which is recognised as one, and
    never a hole.
    """
    trial = trials.all_trials(study)[number]
    if trial.state.is_finished():
        return False
    # One that came from the queue itself may not have drawn what it was given there.
    params = trial.system_attrs.get("fixed_params", {}) | trial.params
    # One that was cut off before it drew any parameter has nothing to repeat.
    if params or trials.GIVEN in trial.user_attrs:
        first = trial.user_attrs.get("retry_of", number)
        losses = trial.user_attrs.get("losses", 0) + (reason == trials.LOST)
        if losses > MAY_BE_LOST:
            reason = "crash"
            message = f"its worker died with it {losses} times"
            study._storage.set_trial_user_attr(trial._trial_id, "message", message)
        else:
            known = {"retry_of": first} | ({"losses": losses} if losses else {})
            known |= {k: v for k, v in trial.user_attrs.items() if k in trials.QUEUED}
            study.enqueue_trial(params, user_attrs=known)
    study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    study.tell(number, state=TrialState.FAIL)
    return True


def reap(study: optuna.Study, folder: Path, *, alone: bool = False) -> list[int]:
    """Requeues the running trials whose processes are gone; their numbers.

    alone: nobody else can be at work on this study, so that every running trial is a dead one,
    also that of another host name: a container is given a new one at each start.
    """
    lost = [
        t.number
        for t in trials.all_trials(study)
        if t.state == TrialState.RUNNING and (alone or is_gone(t.user_attrs.get("owner")))
    ]
    for number in lost:
        requeue(study, number, trials.LOST)
        shutil.rmtree(folder / "trials" / str(number), ignore_errors=True)
    return lost
