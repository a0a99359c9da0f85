"""What is drawn of a standing, at any width."""

import io
import re

import pytest
from rich.console import Console

from lesionseg.config import TrialConfig
from lesionseg.space import ComponentConfig
from search.monitoring import status_view
from tests.search.statuses import worker_of

CONFIG = TrialConfig().to_dict()


def trial_of(**changes):
    return {
        "number": 3,
        "epochs": 12,
        "curve": [0.25, 0.5, 0.75],
        "config": CONFIG,
        "baseline": None,
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
    console.print(status_view.view(status, width))
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
    long = TrialConfig(model=ComponentConfig("smp_linknet", {"encoder": "mobilenet_v2" * 20})).to_dict()
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
    assert status_view.forecast(status_of(), at).startswith("about 90 minutes left, until ")
    # A day is named where it is not sure to be today.
    assert re.search(
        r"until \w{3} \d\d:\d\d$", status_view.forecast(status_of(hours_left=30.0), at)
    )
    for nothing in (
        {"hours_left": None},
        {"hours_left": 0.0},
        {"workers": []},
        {"workers": [worker_of(silent=True)]},
        {"workers": [worker_of(trial=None)]},
        {"spent": 12},
    ):
        assert status_view.forecast(status_of(**nothing), at) == ""


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
    assert status_view.sparkline(values, top, width) == line


def test_without_colour_there_are_no_colour_codes(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="truecolor")
    console.print(status_view.view(status_of(), 100))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", file.getvalue())
    assert "here[1]:42" in file.getvalue()
