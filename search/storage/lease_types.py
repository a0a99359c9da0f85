"""Types that ``TrialLeases`` takes and returns, and the identity of a process."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from dataclasses import dataclass, field
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
    """A trial on which a worker holds the lease.

    training_s: the study's training time when it was claimed; see ``TrialAttr.TRAINING_START``.
    claimed_at: seconds of this process's monotonic clock.
    """

    trial_id: int
    number: int
    training_s: float = field(default=0.0, compare=False)
    claimed_at: float = field(default_factory=time.monotonic, compare=False)


@dataclass(frozen=True)
class ProcessId:
    """A process on some host, distinct from a later process with the same pid.

    start_time: seconds; on Linux since the boot, independent of the wall clock.
    pid_namespace: namespace in which ``pid`` counts, and kernel boot. Containers may share a host
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
            reused = abs(start_time_of(self.pid) - self.start_time) > 1
            return reused or psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, ProcessLookupError):
            return True


def current_process() -> ProcessId:
    """Return the identity of this process."""
    pid = os.getpid()
    return ProcessId(socket.gethostname(), pid, start_time_of(pid), _pid_namespace())


def start_time_of(pid: int) -> float:
    """Return when a process was started, as ``ProcessId.start_time``."""
    if not sys.platform.startswith("linux"):
        return psutil.Process(pid).create_time()
    # psutil adds the time of the boot, which depends on the wall clock.
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except FileNotFoundError:
        raise psutil.NoSuchProcess(pid) from None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


@lru_cache
def _pid_namespace() -> str:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.readlink('/proc/self/ns/pid')}@{boot_id[:8]}"
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
