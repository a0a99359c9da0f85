"""The status of studies, for people and for other programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lesionseg.errors import InputError
from search.storage import training_time, trial_records
from search.storage.artifact_store import open_artifact_store
from search.storage.lease_types import Command
from search.storage.leases import TrialLeases
from search.storage.study_dir import read_metrics
from search.storage.tables import WorkerRow
from search.storage.trial_records import State, StudyAttr, TrialAttr
from search.study.deadline import elapsed_s, is_job_running
from search.study.location import find_run, list_runs
from search.study.opening import list_test_evaluations, load_study

#: Results of the finished folds of a cross-validation, as stored with a trial.
Folds = dict[str, Any]


@dataclass(frozen=True)
class BestTrial:
    """The best complete trial. value: validation Dice."""

    number: int
    value: float
    config: dict[str, Any]
    folds: Folds | None


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is being trained.

    epochs: of the whole training, over all folds. curve: validation Dice of each epoch so far, in
    the first fold; None if it is not finite. config: None before it is sampled.
    """

    number: int
    epochs: int
    curve: list[float | None]
    config: dict[str, Any] | None
    folds: Folds | None
    baseline: str | None


@dataclass(frozen=True)
class QueuedTrial:
    """A waiting trial. requeued_from: number of the first attempt."""

    number: int
    requeued_from: int | None
    baseline: str | None


@dataclass(frozen=True)
class WorkerStatus:
    """A registered worker. is_expired: its trial is about to be requeued."""

    id: str
    host: str
    pid: int
    device: str
    share: float
    threads: int
    state: str
    trial: int | None
    epoch: int
    seconds_since_heartbeat: float
    is_expired: bool


@dataclass(frozen=True)
class JobTime:
    """Hours of a job with ``budget.total_hours``; is_running: whether its process is at work."""

    spent: float
    total: float
    is_running: bool


@dataclass(frozen=True)
class StudyStatus:
    """Status of a study at one moment; ``asdict`` gives its JSON.

    Attributes:
        counts: number of trials by state.
        reasons: number of trials by reason of failure or early end.
        finished: number of trials that count against the budget.
        hours: wall-clock hours in which at least one worker trained.
        gpu_hours: hours on GPUs, summed over workers.
        hours_left: see ``estimate_hours_left``.
        budget: limits of ``trials``, ``hours`` and ``gpu_hours``; None for no limit.
        disk_bytes: size of checkpoints and weights; None if it was not measured.
        test: mean test Dice ``dice`` and its interval ``ci95``; None before the final test.
        encoder_weights: source of the weights by encoder.
        job: None without ``budget.total_hours``.
    """

    study: str
    command: Command
    counts: dict[str, int]
    reasons: dict[str, int]
    finished: int
    hours: float
    gpu_hours: float
    hours_left: float | None
    budget: dict[str, Any]
    best: BestTrial | None
    queued: list[QueuedTrial]
    running: list[RunningTrial]
    workers: list[WorkerStatus]
    disk_bytes: int | None
    test_evaluations: int
    test: dict[str, Any] | None
    encoder_weights: dict[str, str]
    job: JobTime | None = None


class StatusReader:
    """Reads the status of a study repeatedly over one connection.

    After the first time only new and running trials are read. InputError as ``load_study``.
    """

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        self.folder = folder
        self.study = load_study(folder, storage=storage)
        self.leases = TrialLeases(self.study)

    def read(self, *, measure_disk: bool = True) -> StudyStatus:
        """Return the current status; ``measure_disk`` sums the sizes of all files."""
        trials = trial_records.all_trials(self.study)
        by_state: dict[State, list[FrozenTrial]] = {state: [] for state in State}
        for trial in trials:
            by_state[trial_records.state_of(trial)].append(trial)
        attrs, name = self.study.user_attrs, self.study.study_name
        budget, final = attrs[StudyAttr.SPEC]["budget"], read_metrics(self.folder)
        disk_bytes = None
        if measure_disk:
            store = open_artifact_store(attrs.get(StudyAttr.ARTIFACTS), self.folder, name)
            disk_bytes = store.total_bytes()
        return StudyStatus(
            study=name,
            command=self.leases.command,
            counts=trial_records.count_by_state(trials),
            reasons=trial_records.count_reasons(trials),
            finished=trial_records.count_finished(trials),
            hours=round(training_time.hours_spent(trials), 6),
            gpu_hours=round(training_time.gpu_hours_spent(trials), 6),
            hours_left=estimate_hours_left(trials, budget),
            budget={key: budget.get(key) for key in ("trials", "hours", "gpu_hours")},
            best=_best_trial(trials),
            queued=[
                QueuedTrial(
                    trial.number,
                    trial.user_attrs.get(TrialAttr.REQUEUED_FROM),
                    trial.user_attrs.get(TrialAttr.BASELINE),
                )
                for trial in by_state[State.WAITING]
            ],
            running=[_running_trial(t, budget["epochs"]) for t in by_state[State.RUNNING]],
            workers=[_worker_status(w, self.leases.grace_s) for w in self.leases.list_workers()],
            disk_bytes=disk_bytes,
            test_evaluations=len(list_test_evaluations(self.study)),
            test=final and {"dice": final["test"]["dice"], "ci95": final["ci95"]["dice"]},
            encoder_weights=attrs[StudyAttr.SPEC].get("encoder_weights") or {},
            job=_job_time(self.study, trials),
        )


def runs_reader(
    name: str | None, storage: str | None, on_error: Callable[[InputError], None]
) -> Callable[..., list[StudyStatus]]:
    """Return a function that reads one study, or all under ``runs/``, as ``StatusReader.read``.

    on_error: called with the error of each study under ``runs/`` that cannot be read.
    """
    open_reader = cache(lambda run: StatusReader(find_run(run), storage))

    def read(**options: bool) -> list[StudyStatus]:
        if name:
            return [open_reader(name).read(**options)]
        statuses = []
        for run in list_runs():
            try:
                statuses.append(open_reader(run).read(**options))
            except InputError as error:
                on_error(error)
        return statuses

    return read


def estimate_hours_left(trials: Sequence[FrozenTrial], budget: Mapping[str, Any]) -> float | None:
    """Estimate the wall-clock hours until the study ends.

    The minimum of three estimates: the trials that are left at the average speed so far, counting
    the epochs of running trials as parts of a trial; what ``budget.hours`` leaves; and what
    ``budget.gpu_hours`` leaves at the average speed so far.

    Returns:
        Hours >= 0; None while there is no estimate: no limit, and no trial has finished.
    """
    finished = trial_records.count_finished(trials)
    hours, gpu_hours = training_time.hours_spent(trials), training_time.gpu_hours_spent(trials)
    running = [t for t in trials if trial_records.state_of(t) == State.RUNNING]
    done = finished + sum(_finished_part(trial, budget["epochs"]) for trial in running)
    estimates = []
    if finished and hours:
        estimates.append(hours / done * (budget["trials"] - done))
    if budget.get("hours") is not None:
        estimates.append(budget["hours"] - hours)
    if budget.get("gpu_hours") is not None and gpu_hours:
        estimates.append((budget["gpu_hours"] - gpu_hours) * hours / gpu_hours)
    return round(max(0.0, float(min(estimates))), 6) if estimates else None


def _job_time(study: optuna.Study, trials: Sequence[FrozenTrial]) -> JobTime | None:
    total = study.user_attrs[StudyAttr.SPEC]["budget"].get("total_hours")
    if total is None:
        return None
    return JobTime(round(elapsed_s(study, trials) / 3600, 6), total, is_job_running(study))


def _finished_part(trial: FrozenTrial, epochs: int) -> float:
    """Return the finished part of a running trial in [0, 1].

    Epochs are known of the first fold only; later folds count when they are finished.
    """
    folds = trial_records.folds_of(trial)
    first_fold = min(1.0, len(trial_records.dice_by_epoch(trial)) / epochs)
    return max(first_fold, len(folds["dice"])) / folds["of"] if folds else first_fold


def _best_trial(trials: Sequence[FrozenTrial]) -> BestTrial | None:
    for trial in trial_records.rank_trials(trials)[:1]:
        assert trial.value is not None
        config, folds = trial_records.config_of(trial), trial_records.folds_of(trial)
        return BestTrial(trial.number, trial.value, config, folds)
    return None


def _running_trial(trial: FrozenTrial, epochs: int) -> RunningTrial:
    config, folds = trial.user_attrs.get(TrialAttr.CONFIG), trial_records.folds_of(trial)
    epochs = config["epochs"] if config else epochs
    dice = trial_records.dice_by_epoch(trial).values()
    return RunningTrial(
        number=trial.number,
        epochs=epochs * folds["of"] if folds else epochs,
        curve=[value if math.isfinite(value) else None for value in dice],  # JSON has no NaN
        config=config,
        folds=folds,
        baseline=trial.user_attrs.get(TrialAttr.BASELINE),
    )


def _worker_status(worker: WorkerRow, grace_s: float) -> WorkerStatus:
    process, slot, age_s = worker.process, worker.slot, max(0.0, worker.heartbeat_age_s)
    is_expired = age_s > grace_s or process.has_exited()
    return WorkerStatus(
        worker.id, process.host, process.pid, slot.device, slot.share, slot.threads,
        worker.state, worker.trial, worker.epoch, round(age_s, 1), is_expired,
    )  # fmt: skip
