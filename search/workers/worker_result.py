"""How a worker ended. Importable without torch, for the jobs of clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from search.study.location import StudyLocation
    from search.trial_process.slot import Slot, StopEvent


class StopReason(StrEnum):
    """Why a worker ended. DONE: the budget is spent; EXHAUSTED: no new configuration is left."""

    DONE = "done"
    TIME = "time"
    EXHAUSTED = "exhausted"
    STOPPED = "stopped"
    MAX_TRIALS = "max_trials"


#: What users read.
DESCRIPTIONS = {
    StopReason.DONE: "the study is done",
    StopReason.TIME: "the time budget is spent",
    StopReason.EXHAUSTED: "no new configuration is left to try",
    StopReason.STOPPED: "stopped",
    StopReason.MAX_TRIALS: "the maximum number of trials is reached",
}
#: After these the study needs no worker.
STUDY_ENDED = frozenset({StopReason.DONE, StopReason.TIME, StopReason.EXHAUSTED})


@dataclass(frozen=True)
class WorkerResult:
    """How many trials a worker finished, and why it ended."""

    trials: int
    reason: StopReason


#: The type of ``search.workers.loop.join_and_run_trials``.
Work: TypeAlias = "Callable[[StudyLocation, Slot, StopEvent], WorkerResult]"
