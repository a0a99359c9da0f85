"""The live view beside work, and in a real terminal."""

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
from tests.search.helpers import PATIENCE, SLOT, open_tiny, write_study
from tests.search.monitoring.test_status_view import status_of


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_drawn_beside_work_on_no_terminal(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal)
    with live.Following(console, lambda: pytest.fail("nobody shall look")) as following:
        assert following.thread is None
        console.print("a line")
    assert file.getvalue() == "a line\n"


def test_a_view_that_fails_ends_nothing_and_the_cursor_comes_back():
    file, looks = io.StringIO(), []

    def look():
        looks.append(1)
        if len(looks) == 1:
            raise OSError("the database is away")
        return status_of()

    console = Console(file=file, force_terminal=True, width=100, highlight=False)
    with live.Following(console, lambda: look, every=0.01):
        console.print("trial 1 complete")
        until = time.monotonic() + PATIENCE
        while len(looks) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    text = file.getvalue()
    assert "trial 1 complete" in text
    assert "3 of 12 trials" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(("took", "seconds"), [(0.0, 1.0), (0.01, 1.0), (0.1, 5.0), (1.0, 50.0)])
def test_a_view_that_costs_much_is_drawn_more_rarely(took, seconds):
    assert live.pause(1.0, took) == pytest.approx(seconds)


class Terminal:
    """A process in a pseudo-terminal of a size, and what it has written."""

    def __init__(self, words, folder, columns=100, **environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        given = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
        given |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment}
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", *words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=given,
            start_new_session=True,
        )  # fmt: skip
        self.theirs, self.ours, self.text = theirs, ours, ""

    def read(self, wanted, seconds=PATIENCE):
        """Reads until a text is there; whether it came."""
        until = time.monotonic() + seconds
        while wanted not in self.text and time.monotonic() < until:
            if select.select([self.ours], [], [], 0.1)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
            elif self.process.poll() is not None:
                break
        return wanted in self.text

    def interrupt(self):
        """Ctrl-C; the exit code."""
        os.kill(self.process.pid, signal.SIGINT)
        return self.end()

    def end(self):
        """Waits for it and reads the rest."""
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < until:
            self.read("\0", 0.2)
        self.read("\0", 0.2)
        return self.process.wait(1)

    def is_restored(self):
        """Whether the cursor is shown and the settings are as they were."""
        shown = self.text.rfind("\x1b[?25h") > self.text.rfind("\x1b[?25l")
        return shown and termios.tcgetattr(self.theirs) == self.before


@pytest.fixture
def terminal():
    """Starts commands in terminals, and ends them."""
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
    """Without what moves the cursor or colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "environment"), [(100, {}), (32, {"NO_COLOR": "1"})], ids=["wide", "narrow"]
)
def test_a_terminal_shows_the_study_and_is_restored_after_ctrl_c(
    terminal, tiny_data, tmp_path, columns, environment
):
    opened = open_tiny(tiny_data, tmp_path / "runs" / "s")
    leases = TrialLeases(opened.study)
    leases.record_epochs(leases.claim(leases.register_worker(SLOT)), {1: 0.25, 2: 0.5})
    there = terminal(["status", "s", "--watch"], tmp_path, columns, **environment)
    assert there.read("0 of 3 trials"), there.text
    assert there.read("2/2"), there.text
    assert there.read("\x1b[1A"), "it was not drawn over"
    assert there.interrupt() == 130
    assert there.is_restored()
    assert "Traceback" not in there.text
    assert max(map(len, plain(there.text).replace("\r", "\n").split("\n"))) <= columns
    assert bool(re.search(r"\x1b\[3[0-9]m", there.text)) == (not environment)


@pytest.mark.slow
def test_what_is_no_terminal_gets_plain_lines(tiny_data, tmp_path):
    open_tiny(tiny_data, tmp_path / "runs" / "s")
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "status", "s", "--watch"],
        stdout=subprocess.PIPE, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=PATIENCE)[0]
    assert first == b"s: 0 of 3 trials\n"
    assert b"\x1b" not in first + rest
    assert process.returncode == 130


@pytest.mark.slow
def test_a_run_in_a_terminal_draws_below_its_lines_and_goes(terminal, tiny_data, tmp_path):
    study = write_study(tmp_path / "tiny.yaml", {"budget.epochs": 40, "budget.trials": 2})
    words = ["run", str(study), "--data", str(tiny_data), "--device", "cpu", "--no-final"]
    there = terminal(words, tmp_path)
    assert there.read("of 2 trials"), there.text
    assert there.end() == 0, there.text
    assert "trial   1" in plain(there.text)
    assert "the budget of 2 trials is spent: 2 complete" in plain(there.text)
    assert there.is_restored()


@pytest.mark.slow
def test_ctrl_c_in_a_run_restores_the_terminal_and_says_how_to_go_on(terminal, tiny_data, tmp_path):
    study = write_study(tmp_path / "tiny.yaml", {"budget.epochs": 5000})
    words = ["run", str(study), "--data", str(tiny_data), "--device", "cpu", "--no-final"]
    there = terminal(words, tmp_path)
    assert there.read("by epoch"), there.text
    assert there.interrupt() == 130
    assert "Go on with:" in plain(there.text)
    assert there.is_restored()
