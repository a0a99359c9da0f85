"""Types that ``TrialLeases`` takes and returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from search.storage.process_id import ProcessId
from search.storage.tables import WorkerState
from search.trial_process.slot import Slot


class Command(StrEnum):
    """What all workers of a study are to do. STOP: requeue running trials and exit."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


class Refusal(StrEnum):
    """Why no trial was claimed. FULL: running trials use the rest of the budget."""

    FULL = "full"
    SPENT = "spent"


class WorkerExpired(RuntimeError):
    """Another worker took this one for dead; it must register again."""


@dataclass(frozen=True)
class Claim:
    """A trial on which a worker holds the lease."""

    trial_id: int
    number: int


@dataclass(frozen=True)
class HeartbeatReply:
    """has_lease: whether the worker is registered and still holds its trial."""

    command: Command
    has_lease: bool


@dataclass(frozen=True)
class WorkerInfo:
    """A registered worker. trial: the number of its trial; ordinal: how many came before it."""

    id: str
    process: ProcessId
    slot: Slot
    state: WorkerState
    trial: int | None
    epoch: int
    heartbeat_age_s: float
    ordinal: int

    def owner(self) -> dict[str, Any]:
        """Return what a trial stores about the worker that trains it."""
        return {"worker": self.id, **asdict(self.process), **asdict(self.slot)}
