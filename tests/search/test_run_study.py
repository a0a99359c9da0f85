"""`lesionsearch run` as a process: interrupted, terminated, killed, and gone on with."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import cli
from search.monitoring.status import status
from search.storage import trial_records
from search.storage.study_dir import is_study
from search.study.opening import load_study
from tests.search.helpers import LONG_WAIT_S, is_gone, wait_until, write_study

COMMAND = Path(sys.executable).with_name("lesionsearch")

#: Enough epochs that a trial takes some tenths of a second: time to be hit in the middle.
CHANGES = {"budget.epochs": 12, "sampler": {"name": "tpe", "startup": 2}}


def words(tmp_path, data, trials_, *more) -> list[str]:
    """Arguments of a run; the file is written on the way."""
    spec = write_study(tmp_path / "tiny.yaml", CHANGES)
    args = ["run", str(spec), "--data", str(data), "--out", str(tmp_path / "s")]
    return [*args, "--trials", str(trials_), "--device", "cpu", "--threads", "1", *more]


@contextmanager
def started(args):
    """The command in a process group of its own."""
    process = subprocess.Popen(
        [COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_trials(process, n: int) -> None:
    """Reads its lines until n trials have ended."""
    for _ in range(n):
        wait_for(process, lambda line: line.startswith("trial "))


def wait_for(process, wanted) -> None:
    """Reads its lines until one that is wanted."""
    read = ""
    for line in process.stdout:
        read += line
        if wanted(line):
            return
    raise AssertionError(f"it ended too early: {read}{process.stderr.read()}")


def others_than(pid: int, folder: Path) -> int:
    """How many other workers of the study are there."""
    return sum(worker["pid"] != pid for worker in status(folder)["workers"])


def go_on(args) -> str:
    """The same command to its end, in this process."""
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def check_whole(folder: Path, budget: int, known_before=()) -> None:
    """Budget exact, nothing twice, nothing lost, nothing left at work or waiting."""
    known = trial_records.all_trials(load_study(folder))
    counts = trial_records.count_by_state(known)
    assert counts["running"] == counts["waiting"] == 0
    assert trial_records.count_finished(known) == budget
    ended = [t for t in known if trial_records.state_of(t) in {"complete", "pruned", "failed"}]
    digests = Counter(t.user_attrs["digest"] for t in ended)
    assert max(digests.values()) == 1
    assert {t.number: t.values for t in ended}.items() >= dict(known_before).items()


def finished(folder: Path) -> dict[int, list[float]]:
    """What no accident may take away."""
    return {
        t.number: t.values
        for t in trial_records.all_trials(load_study(folder))
        if trial_records.state_of(t) == "complete"
    }


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_command_that_goes_on(tiny_data, tmp_path):
    # A list in the command must survive a console that has a markup of its own.
    args = words(tmp_path, tiny_data, 5, "--no-final", "--set", "search.loss=[bce,dice]")
    with started(args) as process:
        wait_for_trials(process, 2)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""
    assert "interrupted; nothing finished is lost. Go on with:" in out
    assert wait_until(lambda: all(is_gone(p.pid) for p in family), LONG_WAIT_S)
    command = out.rstrip().splitlines()[-1]
    assert shlex.split(command) == ["lesionsearch", *args]
    plain = status(tmp_path / "s")
    assert plain["counts"]["running"] == 0
    assert plain["counts"]["waiting"] <= 1
    before = finished(tmp_path / "s")
    assert "going on after" in go_on(shlex.split(command)[1:])
    check_whole(tmp_path / "s", 5, before)


@pytest.mark.slow
def test_termination_of_the_whole_group_is_no_failure_of_a_trial(tiny_data, tmp_path):
    """A service manager sends SIGTERM to every process at once, the training's included."""
    args = words(tmp_path, tiny_data, 4, "--no-final")
    with started(args) as process:
        wait_for_trials(process, 1)
        time.sleep(0.15)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert status(tmp_path / "s")["counts"]["failed"] == 0
    before = finished(tmp_path / "s")
    go_on(args)
    check_whole(tmp_path / "s", 4, before)


@pytest.mark.slow
def test_termination_before_the_first_trial_leaves_a_study_that_goes_on(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 1, "--no-final")
    with started(args) as process:
        assert wait_until(lambda: (tmp_path / "s" / "run.json").exists(), 60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 130
    go_on(args)
    check_whole(tmp_path / "s", 1)


def kill_and_go_on(args, folder: Path, budget: int, rounds: int, storage=None) -> None:
    rng = random.Random(0)
    before: dict[int, list[float]] = {}
    for _ in range(rounds):
        with started(args) as process:
            wait_for_trials(process, 1)
            time.sleep(rng.uniform(0, 0.5))
            family = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert wait_until(lambda each=family: all(is_gone(p.pid) for p in each), LONG_WAIT_S)
        now = finished(folder)
        assert now.items() >= before.items()
        assert len(now) > len(before)
        before = now
    go_on(args)
    check_whole(folder, budget, before)


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_loses_and_repeats_nothing(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 12, "--no-final")
    kill_and_go_on(args, tmp_path / "s", 12, rounds=3)


@pytest.mark.slow
def test_the_same_on_postgresql(tiny_data, tmp_path, postgres_url):
    args = words(tmp_path, tiny_data, 6, "--no-final", "--storage", postgres_url)
    kill_and_go_on(args, tmp_path / "s", 6, rounds=1)
    assert not (tmp_path / "s" / "study.db").exists()


@pytest.mark.slow
def test_a_second_run_on_the_folder_is_refused_and_changes_nothing(tiny_data, tmp_path):
    with started(words(tmp_path, tiny_data, 1000, "--no-final")) as process:
        wait_for_trials(process, 1)
        second = CliRunner().invoke(cli.app, words(tmp_path, tiny_data, 1, "--no-final"))
        assert second.exit_code == 2
        assert second.stderr == (
            f"lesionsearch: {tmp_path}/s: another process is at work on this study; "
            f"wait for it or stop it\n"
        )
        # Not even the budget that it came with.
        assert status(tmp_path / "s")["budget"]["trials"] == 1000
        assert process.poll() is None
        final = CliRunner().invoke(cli.app, ["final", str(tmp_path / "s")])
        assert (final.exit_code, "another process is at work" in final.stderr) == (2, True)


@pytest.mark.slow
def test_two_workers_of_one_command_spend_the_budget_exactly(tiny_data, tmp_path):
    # Trials of some seconds: the second to come must not find all of them taken.
    args = [*words(tmp_path, tiny_data, 6), "--workers", "2", "--set", "budget.epochs=60"]
    out = go_on(args)
    folder = tmp_path / "s"
    assert f"study s in {folder}, 2 workers on cpu" in out
    assert sum(line.startswith("trial ") for line in out.splitlines()) == 6
    assert "the budget of 6 trials is spent: 6 complete" in out
    check_whole(folder, 6)
    known = trial_records.all_trials(load_study(folder))
    assert len({t.user_attrs["owner"]["pid"] for t in known}) == 2
    assert {p.name for p in (folder / "workers").iterdir()} == {"0.log", "1.log"}
    assert status(folder)["workers"] == []
    assert (folder / "final" / "metrics.json").is_file()


@pytest.mark.slow
def test_workers_that_are_interrupted_or_killed_lose_nothing(tiny_data, tmp_path):
    folder = tmp_path / "s"
    # More trials than can be done before all of this has happened, however slow a start is.
    with started([*words(tmp_path, tiny_data, 10_000, "--no-final"), "--workers", "2"]) as process:
        wait_for_trials(process, 2)
        assert wait_until(lambda: len(status(folder)["workers"]) == 2, LONG_WAIT_S)
        victim = status(folder)["workers"][0]["pid"]
        os.kill(victim, signal.SIGKILL)  # another takes its place
        wait_for(process, lambda line: "died (signal 9); another starts in 1 s" in line)
        assert wait_until(lambda: others_than(victim, folder) == 2, LONG_WAIT_S)
        wait_for_trials(process, 2)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert wait_until(lambda: all(is_gone(p.pid) for p in family), LONG_WAIT_S)
    assert status(folder)["workers"] == []
    before = finished(folder)
    budget = trial_records.count_finished(trial_records.all_trials(load_study(folder))) + 4
    go_on([*words(tmp_path, tiny_data, budget, "--no-final"), "--workers", "2"])
    check_whole(folder, budget, before)


@pytest.mark.slow
def test_a_study_that_is_stopped_from_outside_ends_its_command_and_goes_on_later(
    tiny_data, tmp_path
):
    args = words(tmp_path, tiny_data, 1000)
    with started(args) as process:
        wait_for_trials(process, 1)
        stopped = CliRunner().invoke(cli.app, ["stop", str(tmp_path / "s")])
        assert stopped.stdout == f"{tmp_path / 's'}: 1 worker told to stop\n"
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "stopped, as `lesionsearch stop` asked: " in out
    assert not (tmp_path / "s" / "final").exists()
    plain = status(tmp_path / "s")
    assert (plain["command"], plain["counts"]["running"]) == ("stop", 0)
    before = finished(tmp_path / "s")
    more = len(before) + 2
    go_on(words(tmp_path, tiny_data, more))
    check_whole(tmp_path / "s", more, before)


@pytest.mark.slow
def test_a_final_that_is_killed_in_the_middle_leaves_no_half(tiny_data, tmp_path):
    go_on(words(tmp_path, tiny_data, 1, "--no-final"))
    args = ["final", str(tmp_path / "s"), "--device", "cpu", "--threads", "1"]
    with started(args) as process:
        assert wait_until(lambda: (tmp_path / "s" / "final.partial").exists(), 60)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "s" / "final").exists()
    assert status(tmp_path / "s")["test"] is None
    go_on(args)
    assert (tmp_path / "s" / "final" / "metrics.json").is_file()
    assert not (tmp_path / "s" / "final.partial").exists()
    assert status(tmp_path / "s")["test_evaluations"] in (1, 2)  # the killed one may have looked


# --- in this process ---------------------------------------------------------------------------


def test_the_main_job_says_what_it_does_and_writes_everything(tiny_data, tmp_path):
    out = go_on(words(tmp_path, tiny_data, 2))
    folder = tmp_path / "s"
    lines = out.splitlines()
    assert lines[0].startswith("folders: 30 pairs; train 21, val ")
    assert lines[1] == f"study s in {folder}, on cpu"
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["trial", "0", "complete"],
        ["trial", "1", "complete"],
    ]
    assert lines[4] == "the budget of 2 trials is spent: 2 complete"
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "audit.json",
        "data.json",
        "final",
        "report.html",
        "run.json",
        "split.json",
        "study.db",
        "study.yaml",
        "trials",
    }
    # Run again, it has nothing to do: one look at the test images.
    again = go_on(words(tmp_path, tiny_data, 2))
    assert "going on after 2 of 2 trials" in again
    assert status(folder)["test_evaluations"] == 1
    assert status(folder)["spent"] == 2


def test_a_search_without_a_complete_trial_ends_with_1_and_the_reason(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 2, "--set", "constraints.max_params_m=0.0001")
    # Five configurations, all forbidden; a grid asks for each once.
    args += ["--set", "search.optimizer={adam: {lr: 0.01}}", "--set", "sampler.name=grid"]
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 1
    assert result.stderr == "lesionsearch: s: no trial was completed (constraint 5)\n"
    assert "no new configuration is left to try: 5 skipped" in result.stdout
    assert is_study(tmp_path / "s")
    assert not (tmp_path / "s" / "final").exists()
