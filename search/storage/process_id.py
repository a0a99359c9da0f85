"""Processes, told apart across hosts, containers and time."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from a later one of the same number, on whatever host.

    space: the kernel and the process namespace that ``pid`` counts in. Containers may share a
    host's name and see none of each other's processes.
    """

    host: str
    pid: int
    since: float
    space: str

    def is_gone(self) -> bool:
        """Whether it is known to have ended: only where its processes can be seen."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return False
        try:
            there = psutil.Process(self.pid)
            # A later process may have been given the same number.
            return abs(there.create_time() - self.since) > 1 or (
                there.status() == psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return True


def current_process() -> ProcessId:
    """Who is speaking."""
    return ProcessId(socket.gethostname(), os.getpid(), psutil.Process().create_time(), _space())


@lru_cache
def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:8]}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: a host's processes are one space
        return ""
