"""Run a command and measure the wall and processor time of it and of all its descendants."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

INTERVAL_S = 0.25


class Usage(NamedTuple):
    """Seconds of wall time and of processor time."""

    wall: float
    processor: float


class Measured(NamedTuple):
    """Exit status of a command, and what it used until its marker file appeared and in all.

    ``until_marker`` is None without a marker.
    """

    status: int
    until_marker: Usage | None
    total: Usage


def run_measured(
    command: Sequence[str], environment: Mapping[str, str], log: Path, marker: Path
) -> Measured:
    """Run a command; its output goes to the log.

    Processes are sampled, since those of a fork server are not their starter's to wait for. What
    a process uses after its last sample, a quarter of a second at most, is not counted.
    """
    began, marked = time.perf_counter(), None
    seconds: dict[psutil.Process, float] = {}
    with log.open("wb") as output:
        process = psutil.Popen(
            command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while True:
                status = process.poll()
                _sample(process, seconds)
                usage = Usage(time.perf_counter() - began, sum(seconds.values()))
                if marked is None and marker.exists():
                    marked = usage
                if status is not None:
                    return Measured(status, marked, usage)
                time.sleep(INTERVAL_S)
        except BaseException:
            for each in seconds:
                with suppress(psutil.Error):
                    each.terminate()
            raise


def _sample(process: psutil.Process, seconds: dict[psutil.Process, float]) -> None:
    """Update the processor seconds of a process and of all descendants that it has or had."""
    with suppress(psutil.NoSuchProcess):
        for found in [process, *process.children(recursive=True)]:
            seconds.setdefault(found, 0.0)
    for each in seconds:
        with suppress(psutil.Error):
            if each.is_running():  # not another process with its number
                times = each.cpu_times()
                seconds[each] = times.user + times.system
