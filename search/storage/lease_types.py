"""Types that ``TrialLeases`` takes and returns."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from lesionseg.errors import InputError
from search.storage.process_id import ProcessId
from search.storage.tables import WorkerRow, WorkerState
from search.trial_process.slot import Slot

#: Seconds without a heartbeat after which a worker counts as dead; the variable overrides it.
GRACE_S, GRACE_VARIABLE = 60.0, "LESIONSEARCH_GRACE"


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

    @classmethod
    def from_row(cls, row: WorkerRow, now: float) -> WorkerInfo:
        """Return a worker's row as an object; now: by the database's clock."""
        return cls(
            id=row.id,
            process=ProcessId(row.host, row.pid, row.start_time, row.pid_namespace),
            slot=Slot(row.device, row.threads, row.share, row.memory_gb),
            state=row.state,
            trial=row.trial_number,
            epoch=row.epoch,
            heartbeat_age_s=max(0.0, now - row.heartbeat_at),
            ordinal=row.ordinal,
        )


def read_grace_s() -> float:
    """Return the grace period of the environment or the default; InputError if it is not > 0."""
    text = os.environ.get(GRACE_VARIABLE, str(GRACE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds < math.inf:
        return seconds
    raise InputError(
        f"{GRACE_VARIABLE}: must be seconds above 0, got {text!r}; unset it for {GRACE_S:g}"
    )
