"""How a worker ended. Importable without torch, for the jobs of clusters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from search.study.location import StudyLocation
from search.trial_process.slot import Slot


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


@dataclass(frozen=True)
class WorkerResult:
    """How many trials a worker finished, and why it ended."""

    trials: int
    reason: StopReason


#: The type of ``search.workers.loop.join_and_run_trials``.
Work = Callable[[StudyLocation, Slot, threading.Event], WorkerResult]
