"""The live view in a process and in a real terminal."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from search.monitoring import live
from search.storage.leases import TrialLeases
from tests.conftest import ROOT
from tests.search.helpers import LONG_WAIT_S, SLOT, open_tiny, wait_until, write_study
from tests.search.statuses import make_status


class FailingOnceReader:
    """Reads made-up statuses; the first read fails."""

    def __init__(self):
        self.reads = 0

    def read(self, *, measure_disk):
        assert not measure_disk
        self.reads += 1
        if self.reads == 1:
            raise OSError("the database is not available")
        return make_status()


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_capable_terminal_nothing_is_drawn(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal)
    with live.live_view(console, lambda: pytest.fail("must not be opened")):
        console.print("a line")
    assert file.getvalue() == "a line\n"


def test_a_failed_read_skips_one_update_and_the_cursor_is_restored():
    file, reader = io.StringIO(), FailingOnceReader()
    console = Console(file=file, force_terminal=True, width=100, highlight=False)
    with live.live_view(console, lambda: reader, period_s=0.01):
        console.print("trial 1 complete")
        assert wait_until(lambda: reader.reads >= 4, LONG_WAIT_S)
    text = file.getvalue()
    assert "trial 1 complete" in text
    assert "3 of 12 trials" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(("cpu_s", "pause_s"), [(0.0, 1.0), (0.01, 1.0), (0.1, 5.0), (1.0, 50.0)])
def test_expensive_updates_are_less_frequent(cpu_s, pause_s):
    assert live.pause_s(1.0, cpu_s) == pytest.approx(pause_s)


class Terminal:
    """A command in a pseudo-terminal, and its output."""

    def __init__(self, args, folder, columns=100, **environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        env = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
        env |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment}
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", *args],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env,
            start_new_session=True,
        )  # fmt: skip
        self.theirs, self.ours, self.text = theirs, ours, ""

    def read(self, text, seconds=LONG_WAIT_S):
        """Read until a text appears; return whether it did."""
        until = time.monotonic() + seconds
        while text not in self.text and time.monotonic() < until:
            if select.select([self.ours], [], [], 0.1)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
            elif self.process.poll() is not None:
                break
        return text in self.text

    def interrupt(self):
        """Send SIGINT and return the exit code."""
        os.kill(self.process.pid, signal.SIGINT)
        return self.end()

    def end(self):
        """Read the remaining output and return the exit code."""
        until = time.monotonic() + LONG_WAIT_S
        while self.process.poll() is None and time.monotonic() < until:
            self.read("\0", 0.2)
        self.read("\0", 0.2)
        return self.process.wait(1)

    def is_restored(self):
        """Return whether the cursor is visible and the settings are unchanged."""
        shown = self.text.rfind("\x1b[?25h") > self.text.rfind("\x1b[?25l")
        return shown and termios.tcgetattr(self.theirs) == self.before


@pytest.fixture
def terminal():
    """Start commands in terminals; kill them at the end."""
    started = []

    def start(*words, **terms):
        started.append(Terminal(*words, **terms))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        os.close(each.ours)
        os.close(each.theirs)


def plain(text):
    """Remove control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
def test_watch_redraws_and_restores_the_terminal_after_ctrl_c(terminal, tiny_data, tmp_path):
    columns = 60
    opened = open_tiny(tiny_data, tmp_path / "runs" / "s")
    leases = TrialLeases(opened.study)
    leases.record_epochs(leases.claim(leases.register_worker(SLOT)), {1: 0.25, 2: 0.5})
    process = terminal(["status", "s", "--watch"], tmp_path, columns)
    assert process.read("0 of 3 trials"), process.text
    assert process.read("2/2"), process.text
    assert process.read("\x1b[1A"), "the view was not redrawn"
    assert process.interrupt() == 130
    assert process.is_restored()
    assert "Traceback" not in process.text
    assert max(map(len, plain(process.text).replace("\r", "\n").split("\n"))) <= columns
    assert re.search(r"\x1b\[3[0-9]m", process.text)


@pytest.mark.slow
def test_watch_without_a_terminal_prints_plain_lines(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "runs" / "s")
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "status", "s", "--watch"],
        stdout=subprocess.PIPE, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=LONG_WAIT_S)[0]
    assert first.rstrip() == b"s: 0 of 3 trials"
    assert b"\x1b" not in first + rest
    assert process.returncode == 130


@pytest.mark.slow
def test_run_draws_below_its_lines_and_restores_the_terminal(terminal, tiny_data, tmp_path):
    study = write_study(tmp_path / "tiny.yaml", {"budget.epochs": 40, "budget.trials": 2})
    args = ["run", str(study), "--data", str(tiny_data), "--device", "cpu", "--no-final"]
    process = terminal(args, tmp_path)
    assert process.read("of 2 trials"), process.text
    assert process.end() == 0, process.text
    assert "trial   1" in plain(process.text)
    assert "the budget of 2 trials is spent: 2 complete" in plain(process.text)
    assert process.is_restored()


@pytest.mark.slow
def test_ctrl_c_in_a_run_restores_the_terminal_and_prints_the_resume_command(
    terminal, tiny_data, tmp_path
):
    study = write_study(tmp_path / "tiny.yaml", {"budget.epochs": 5000})
    args = ["run", str(study), "--data", str(tiny_data), "--device", "cpu", "--no-final"]
    process = terminal(args, tmp_path)
    assert process.read("by epoch"), process.text
    assert process.interrupt() == 130
    assert "Resume with:" in plain(process.text)
    assert process.is_restored()
