"""Types of a study's status."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from search.storage.lease_types import Command

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
    the first fold; None where it is not finite. config: None before it is sampled.
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
class StudyStatus:
    """Status of a study at one moment.

    Attributes:
        counts: number of trials by state.
        reasons: number of trials by reason of failure or early end.
        finished: number of trials that count against the budget.
        hours: wall-clock hours in which at least one worker trained.
        gpu_hours: hours on GPUs, summed over workers.
        hours_left: see ``estimate_hours_left``.
        budget: limits of ``trials``, ``hours`` and ``gpu_hours``; None for no limit.
        disk_bytes: size of checkpoints and weights; None where it was not measured.
        test: mean test Dice ``dice`` and its interval ``ci95``; None before the final test.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the status as plain data for JSON."""
        return asdict(self)
