"""Status of a study as text, at any width."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from search.monitoring import status_view
from search.monitoring.status import BestTrial, JobTime
from search.storage.lease_types import Command
from tests.search.statuses import CONFIG, make_running_trial, make_status, make_worker_status

FOLDS = {"dice": [0.5, 0.7], "deviation": 0.1, "of": 3}


def render(status, width=140):
    """Return the lines of the live view without colours."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(status_view.render_status(status, width))
    return console.export_text().splitlines()


def print_plain(*statuses):
    """Return what is printed without a terminal."""
    file = io.StringIO()
    console = Console(file=file, highlight=False, width=240, soft_wrap=True)
    console.print(status_view.render_statuses(statuses, console.width, details=True))
    return file.getvalue()


def test_live_view_shows_progress_counts_best_trial_and_workers():
    head, counts, best, titles, row = render(make_status())
    assert head.startswith("skin[bold]: ")
    assert "3 of 12 trials" in head
    assert re.search(r"about 90 minutes left, until \d\d:\d\d$", head.strip())
    assert counts.strip() == "2 complete · 1 failed · 1 running  (reasons: oom 1)"
    assert best.startswith("best: trial 1, validation Dice 0.7500, unet")
    assert titles.split() == [
        "worker", "device", "heartbeat", "trial", "epoch", "Dice", "by", "epoch", "configuration",
    ]  # fmt: skip
    assert row.split()[:11] == [
        "here[1]:42", "cuda:0", "x", "0.5", "7", "s", "ago", "3", "3/12", "0.7500", "▁▅█",
    ]  # fmt: skip
    assert "unet" in row


def test_details_contain_test_result_disk_usage_and_folds():
    best, weights = BestTrial(1, 0.6, CONFIG, FOLDS), {"mit_b0": "bundled"}
    status = make_status(command=Command.PAUSE, best=best, encoder_weights=weights)
    lines = print_plain(status).splitlines()
    assert lines[0].startswith("skin[bold]: 3 of 12 trials about 90 minutes left, until ")
    assert [line.rstrip() for line in lines[1:3]] == [
        "2 complete · 1 failed · 1 running  (reasons: oom 1)", "command to the workers: pause",
    ]  # fmt: skip
    mean = "(mean of 2 folds: 0.5000, 0.7000; deviation 0.1000)"
    assert lines[3].startswith(f"best: trial 1, validation Dice 0.6000 {mean}, unet")
    assert [line.rstrip() for line in lines[4:8]] == [
        "encoder weights: ImageNet (bundled): mit_b0",
        "test Dice: 0.7000 (0.6000 .. 0.8000)",
        "test evaluations of this study: 1",
        "checkpoints and weights: 12.3 MB",
    ]
    assert lines[9].startswith("here[1]:42")
    assert "no studies under runs/" in print_plain()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_no_line_is_longer_than_the_terminal(width):
    workers = [make_worker_status(host="a" * 40, pid=i, trial=i) for i in range(3)]
    trial = make_running_trial(curve=[0.5] * 300)
    lines = render(make_status(study="x" * 100, workers=workers, running=[trial]), width)
    assert max(map(len, lines)) <= width
    assert any("trial" in line for line in lines)


def test_idle_workers_and_trials_without_a_worker_have_rows():
    idle = make_worker_status(trial=None, is_expired=True)
    trial = make_running_trial(curve=[], config=None)
    text = "\n".join(render(make_status(workers=[idle], running=[trial])))
    assert re.search(r"here\[1\]:42 .* 7 s ago, expired +- +- +-", text)
    assert re.search(r"no worker +3 +0/12 +-", text)


def test_a_new_study_is_shown():
    new = make_status(
        finished=0, counts={"running": 0}, reasons={}, best=None, hours_left=None, workers=[],
        running=[], command=Command.PAUSE,
    )  # fmt: skip
    assert [line.rstrip() for line in render(new)[1:]] == [
        "no trials yet", "command to the workers: pause",
    ]  # fmt: skip


def test_forecast_of_a_job_is_its_end_even_between_trials():
    now, job = 1_700_000_000.0, JobTime(spent=0.25, total=1.0, is_running=True)
    text = status_view.forecast(make_status(job=job, workers=[], hours_left=None), now)
    assert re.search(r"^about 45 minutes of the whole job left, until \d\d:\d\d$", text)
    ended = replace(job, is_running=False)
    assert status_view.forecast(make_status(job=ended), now) == ""


def test_forecast_needs_an_active_worker_and_an_unfinished_study():
    now = 1_700_000_000.0
    assert status_view.forecast(make_status(), now).startswith("about 90 minutes left, until ")
    tomorrow = status_view.forecast(make_status(hours_left=30.0), now)
    assert re.search(r"about 30.0 hours left, until \w{3} \d\d:\d\d$", tomorrow)
    for changes in (
        {"hours_left": None},
        {"hours_left": 0.0},
        {"workers": []},
        {"workers": [make_worker_status(is_expired=True)]},
        {"workers": [make_worker_status(trial=None)]},
        {"finished": 12},
    ):
        assert status_view.forecast(make_status(**changes), now) == ""


@pytest.mark.parametrize(
    ("values", "top", "width", "line"),
    [
        ([], 1.0, 8, ""),
        ([None], 1.0, 8, ""),
        ([0.0, 1.0], 0.0, 8, "▁█"),
        ([0.0, 0.5], 1.0, 8, "▁▅"),  # the best trial is higher
        ([0.5], 0.5, 8, "▁"),
        ([0.0, None, 1.0], 0.0, 8, "▁ █"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 0.0, 4, "▂▄▆█"),  # the last of each two
    ],
)
def test_sparkline(values, top, width, line):
    assert status_view.sparkline(values, top, width) == line


def test_no_color_removes_colour_codes(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="truecolor")
    console.print(status_view.render_status(make_status(), 100))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", file.getvalue())
    assert "here[1]:42" in file.getvalue()
