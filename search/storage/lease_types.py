"""Types that ``TrialLeases`` takes and returns, and the identity of a process."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import psutil

from lesionseg.errors import InputError

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
class ProcessId:
    """A process on some host, distinct from a later process with the same pid.

    pid_namespace: kernel boot and namespace in which ``pid`` counts. Containers may share a host
    name without seeing each other's processes.
    """

    host: str
    pid: int
    start_time: float
    pid_namespace: str

    def has_exited(self) -> bool:
        """Return whether the process is known to have ended; False if it cannot be seen."""
        if (self.host, self.pid_namespace) != (socket.gethostname(), _pid_namespace()):
            return False
        try:
            process = psutil.Process(self.pid)
            reused = abs(process.create_time() - self.start_time) > 1
            return reused or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def current_process() -> ProcessId:
    """Return the identity of this process."""
    start_time = psutil.Process().create_time()
    return ProcessId(socket.gethostname(), os.getpid(), start_time, _pid_namespace())


@lru_cache
def _pid_namespace() -> str:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id[:8]}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: all processes of a host share one namespace
        return ""


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
