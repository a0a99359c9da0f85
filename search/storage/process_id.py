"""Identify processes across hosts, containers and time."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil


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
        """Return whether the process is known to have ended; False where it cannot be seen."""
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
