"""The live view, in terminals of every kind; a real one too."""

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

from lesionseg.config import TrialConfig
from lesionseg.space import Pick
from search import live
from search.ledger import Ledger
from tests.conftest import ROOT
from tests.search.helpers import PATIENCE, SLOT, open_tiny, write_study

CONFIG = TrialConfig().to_dict()


def worker_of(**changes):
    return {
        "host": "here[1]",
        "pid": 42,
        "device": "cuda:0",
        "share": 0.5,
        "state": "training",
        "trial": 3,
        "epoch": 2,
        "beat_seconds_ago": 7.4,
        "silent": False,
    } | changes


def trial_of(**changes):
    return {
        "number": 3,
        "epochs": 12,
        "curve": [0.25, 0.5, 0.75],
        "config": CONFIG,
        "preset": None,
    } | changes


def status_of(**changes):
    return {
        "study": "skin[bold]",
        "spent": 3,
        "counts": {"complete": 2, "failed": 1, "running": 1, "waiting": 0},
        "reasons": {"oom": 1},
        "budget": {"trials": 12, "hours": None},
        "best": {"number": 1, "value": 0.75, "config": CONFIG},
        "command": "run",
        "hours_left": 1.5,
        "workers": [worker_of()],
        "running": [trial_of()],
    } | changes


def drawn(status, width=140):
    """The lines of the view without colours."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(live.view(status, width))
    return console.export_text().splitlines()


def test_the_view_says_it_all():
    lines = drawn(status_of())
    head, counts, best, titles, row = lines
    assert head.startswith("skin[bold] ")
    assert "3 of 12 trials" in head
    assert re.search(r"about 90 minutes left, until \d\d:\d\d$", head.strip())
    assert counts.strip() == "2 complete · 1 failed · 1 running  (oom 1)"
    assert best.startswith("best: trial 1, validation Dice 0.7500, unet")
    assert titles.split() == [
        "worker", "device", "trial", "epoch", "Dice", "by", "epoch", "last", "beat",
    ]  # fmt: skip
    assert row.split()[:8] == ["here[1]:42", "cuda:0", "x", "0.5", "3", "3/12", "0.7500", "▁▅█"]
    assert "7 s ago" in row
    assert "unet" in row


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_no_line_is_longer_than_the_terminal(width):
    many = [worker_of(host="a" * 40, pid=i, trial=i) for i in range(3)]
    status = status_of(study="x" * 100, workers=many, running=[trial_of(curve=[0.5] * 300)])
    lines = drawn(status, width)
    assert max(map(len, lines)) <= width
    assert any("trial" in line for line in lines)


@pytest.mark.parametrize("width", [120, 200])
def test_a_long_configuration_takes_only_what_the_others_leave(width):
    long = TrialConfig(model=Pick("smp_linknet", {"encoder": "mobilenet_v2" * 20})).to_dict()
    *_, row = drawn(status_of(running=[trial_of(config=long)]), width)
    assert row.startswith("here[1]:42  cuda:0 x 0.5  3      3/12   0.7500  ")
    assert "7 s ago    smp_linknet(encoder=mob" in row
    assert row.endswith("\N{HORIZONTAL ELLIPSIS}")


def test_a_worker_without_trial_and_a_trial_without_worker_have_their_rows():
    idle = worker_of(trial=None, silent=True)
    text = "\n".join(drawn(status_of(workers=[idle], running=[trial_of(curve=[], config=None)])))
    assert re.search(r"here\[1\]:42 .* - +- +- +7 s ago, silent", text)
    assert re.search(r"nobody +3 +0/12 +-", text)


def test_a_study_at_its_very_beginning_is_shown():
    new = status_of(
        spent=0, counts={"running": 0}, reasons={}, best=None, hours_left=None, workers=[],
        running=[], command="pause",
    )  # fmt: skip
    assert drawn(new)[1:] == ["no trial yet", "its workers are told to pause"]


def test_the_end_is_foretold_only_where_there_is_something_to_tell():
    at = 1_700_000_000.0
    assert live.forecast(status_of(), at).startswith("about 90 minutes left, until ")
    # A day is named where it is not sure to be today.
    assert re.search(r"until \w{3} \d\d:\d\d$", live.forecast(status_of(hours_left=30.0), at))
    for nothing in (
        {"hours_left": None},
        {"hours_left": 0.0},
        {"workers": []},
        {"workers": [worker_of(silent=True)]},
        {"workers": [worker_of(trial=None)]},
        {"spent": 12},
    ):
        assert live.forecast(status_of(**nothing), at) == ""


@pytest.mark.parametrize(
    ("values", "top", "width", "line"),
    [
        ([], 1.0, 8, ""),
        ([None], 1.0, 8, ""),
        ([0.0, 1.0], 0.0, 8, "▁█"),
        ([0.0, 0.5], 1.0, 8, "▁▅"),  # the best so far is higher
        ([0.5], 0.5, 8, "▁"),
        ([0.0, None, 1.0], 0.0, 8, "▁ █"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 0.0, 4, "▂▄▆█"),  # the last of each two
    ],
)
def test_a_curve_in_one_line(values, top, width, line):
    assert live.sparkline(values, top, width) == line


def test_without_colour_there_are_no_colour_codes(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="truecolor")
    console.print(live.view(status_of(), 100))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", file.getvalue())
    assert "here[1]:42" in file.getvalue()


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


@pytest.mark.parametrize(
    ("columns", "environment"), [(100, {}), (32, {"NO_COLOR": "1"})], ids=["wide", "narrow"]
)
def test_a_terminal_shows_the_study_and_is_restored_after_ctrl_c(
    terminal, tiny_data, tmp_path, columns, environment
):
    opened = open_tiny(tiny_data, tmp_path / "runs" / "s")
    ledger = Ledger(opened.study)
    ledger.report(ledger.claim(ledger.join(SLOT)), {1: 0.25, 2: 0.5})
    there = terminal(["status", "s", "--watch"], tmp_path, columns, **environment)
    assert there.read("0 of 3 trials"), there.text
    assert there.read("2/2"), there.text
    assert there.read("\x1b[1A"), "it was not drawn over"
    assert there.interrupt() == 130
    assert there.is_restored()
    assert "Traceback" not in there.text
    assert max(map(len, plain(there.text).replace("\r", "\n").split("\n"))) <= columns
    assert bool(re.search(r"\x1b\[3[0-9]m", there.text)) == (not environment)


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
