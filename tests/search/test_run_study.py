"""`lesionsearch run` as a process: interrupted, terminated, killed and resumed."""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import cli
from search.monitoring.status import StatusReader
from search.storage import trial_records
from search.storage.study_dir import is_study
from search.study.opening import load_study
from tests.search.helpers import LONG_WAIT_S, is_gone, wait_until, write_study

COMMAND = Path(sys.executable).with_name("lesionsearch")

#: Epochs for which a trial takes some tenths of a second, so that signals arrive during it.
CHANGES = {"budget.epochs": 12, "sampler": {"name": "tpe", "startup": 2}}


def words(tmp_path, data, trials_, *more) -> list[str]:
    """Write the study file and return the arguments of a run."""
    spec = write_study(tmp_path / "tiny.yaml", CHANGES)
    args = ["run", str(spec), "--data", str(data), "--out", str(tmp_path / "s")]
    return [*args, "--trials", str(trials_), "--device", "cpu", "--threads", "1", *more]


@contextmanager
def started(args):
    """Run the command in its own process group; kill it at the end."""
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
    """Read lines until n trials have ended."""
    for _ in range(n):
        wait_for(process, lambda line: line.startswith("trial "))


def wait_for(process, condition) -> None:
    """Read lines until one satisfies a condition."""
    read = ""
    for line in process.stdout:
        read += line
        if condition(line):
            return
    raise AssertionError(f"the process ended too early: {read}{process.stderr.read()}")


def count_other_workers(pid: int, folder: Path) -> int:
    """Count the workers of the study in other processes."""
    return sum(worker.pid != pid for worker in StatusReader(folder).read().workers)


def run_command(args) -> str:
    """Run the command in this process and return its output."""
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def check_complete(folder: Path, budget: int, earlier=()) -> None:
    """Check that the budget is exact, and that no trial is repeated, lost or unfinished."""
    known = trial_records.all_trials(load_study(folder))
    counts = trial_records.count_by_state(known)
    assert counts["running"] == counts["waiting"] == 0
    assert trial_records.count_finished(known) == budget
    ended = [t for t in known if trial_records.state_of(t) in {"complete", "pruned", "failed"}]
    digests = Counter(t.user_attrs["digest"] for t in ended)
    assert max(digests.values()) == 1
    assert {t.number: t.values for t in ended}.items() >= dict(earlier).items()


def complete_trials(folder: Path) -> dict[int, list[float]]:
    """Return the values of complete trials, which must not be lost."""
    return {
        t.number: t.values
        for t in trial_records.all_trials(load_study(folder))
        if trial_records.state_of(t) == "complete"
    }


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_prints_the_resume_command(tiny_data, tmp_path):
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
    assert "interrupted; all finished work is saved. Resume with:" in out
    assert wait_until(lambda: all(is_gone(p.pid) for p in family), LONG_WAIT_S)
    command = out.rstrip().splitlines()[-1]
    assert shlex.split(command) == ["lesionsearch", *args]
    status = StatusReader(tmp_path / "s").read()
    assert status.counts["running"] == 0
    assert status.counts["waiting"] <= 1
    before = complete_trials(tmp_path / "s")
    assert "resuming after" in run_command(shlex.split(command)[1:])
    check_complete(tmp_path / "s", 5, before)


@pytest.mark.slow
def test_sigterm_to_the_process_group_fails_no_trial(tiny_data, tmp_path):
    """A service manager sends SIGTERM to all processes, including the training process."""
    args = words(tmp_path, tiny_data, 4, "--no-final")
    with started(args) as process:
        wait_for_trials(process, 1)
        time.sleep(0.15)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert StatusReader(tmp_path / "s").read().counts["failed"] == 0
    before = complete_trials(tmp_path / "s")
    run_command(args)
    check_complete(tmp_path / "s", 4, before)


def run_in_terminal(args, condition) -> int:
    """Run the command in a terminal, close it when a condition holds; return the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND, [str(COMMAND), *args])
    os.set_blocking(terminal, False)

    def read_and_check() -> bool:
        with suppress(BlockingIOError):
            os.read(terminal, 65536)
        return condition()

    assert wait_until(read_and_check, LONG_WAIT_S)
    family = psutil.Process(pid).children(recursive=True)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert wait_until(lambda: all(is_gone(p.pid) for p in family), LONG_WAIT_S)
    return code


def count_trained(folder: Path, epochs: int) -> int:
    """Count the running trials that have reported this number of epochs."""
    if not is_study(folder):
        return 0
    known = trial_records.all_trials(load_study(folder))
    running = (t for t in known if trial_records.state_of(t) == "running")
    return sum(len(t.intermediate_values) >= epochs for t in running)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "rounds"), [(1, (5, 30)), (2, (5,))])
def test_a_closed_terminal_requeues_the_trials_with_their_checkpoints(
    tiny_data, tmp_path, workers, rounds
):
    """Further output of the command cannot be written."""
    args = words(tmp_path, tiny_data, workers, "--no-final", "--set", "budget.epochs=100")
    args += ["--workers", str(workers)] if workers > 1 else []
    folder = tmp_path / "s"
    for epochs in rounds:
        assert run_in_terminal(args, lambda n=epochs: count_trained(folder, n) == workers) == 130
        counts = StatusReader(folder).read().counts
        assert (counts["running"], counts["failed"], counts["waiting"]) == (0, 0, workers)
    run_command(args)
    check_complete(folder, workers)
    attrs = [t.user_attrs for t in trial_records.all_trials(load_study(folder))]
    assert {a.get("reason") for a in attrs} == {"interrupted", None}
    resumed = [a["resumed_at"] for a in attrs if "resumed_at" in a]
    assert len(resumed) == workers * len(rounds)
    assert sum(epochs >= rounds[-1] for epochs in resumed) == workers


@pytest.mark.slow
def test_a_run_ends_as_usual_although_nothing_can_be_printed(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 1)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, *args], stdout=full, stderr=full, timeout=LONG_WAIT_S)
    assert done.returncode == 0
    assert (tmp_path / "s" / "final" / "metrics.json").is_file()


@pytest.mark.slow
def test_a_study_terminated_before_its_first_trial_can_be_resumed(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 1, "--no-final")
    with started(args) as process:
        assert wait_until(lambda: (tmp_path / "s" / "run.json").exists(), 60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 130
    run_command(args)
    check_complete(tmp_path / "s", 1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_killed_study_loses_and_repeats_nothing(tiny_data, tmp_path, backend, request):
    folder, args = tmp_path / "s", words(tmp_path, tiny_data, 4, "--no-final")
    if backend == "postgresql":
        args += ["--storage", request.getfixturevalue("postgres_url")]
    with started(args) as process:
        wait_for_trials(process, 1)
        time.sleep(0.3)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert wait_until(lambda: all(is_gone(p.pid) for p in family), LONG_WAIT_S)
    before = complete_trials(folder)
    assert before
    run_command(args)
    check_complete(folder, 4, before)
    assert (folder / "study.db").exists() == (backend == "sqlite")


@pytest.mark.slow
def test_a_second_run_on_the_same_folder_is_refused(tiny_data, tmp_path):
    with started(words(tmp_path, tiny_data, 1000, "--no-final")) as process:
        wait_for_trials(process, 1)
        second = CliRunner().invoke(cli.app, words(tmp_path, tiny_data, 1, "--no-final"))
        assert second.exit_code == 2
        assert second.stderr == (
            f"lesionsearch: {tmp_path}/s: another process is at work on this study; "
            f"wait for it or stop it\n"
        )
        assert StatusReader(tmp_path / "s").read().budget["trials"] == 1000
        assert process.poll() is None
        final = CliRunner().invoke(cli.app, ["final", str(tmp_path / "s")])
        assert (final.exit_code, "another process is at work" in final.stderr) == (2, True)


@pytest.mark.slow
def test_two_workers_spend_the_budget_exactly(tiny_data, tmp_path):
    # Trials of some seconds, so that both workers get some.
    args = [*words(tmp_path, tiny_data, 6), "--workers", "2", "--set", "budget.epochs=30"]
    out = run_command(args)
    folder = tmp_path / "s"
    assert f"study s in {folder}, 2 workers on cpu" in out
    assert sum(line.startswith("trial ") for line in out.splitlines()) == 6
    assert "the budget of 6 trials is spent: 6 complete" in out
    check_complete(folder, 6)
    known = trial_records.all_trials(load_study(folder))
    assert len({t.user_attrs["owner"]["pid"] for t in known}) == 2
    assert {p.name for p in (folder / "workers").iterdir()} == {"0.log", "1.log"}
    assert StatusReader(folder).read().workers == []
    assert (folder / "final" / "metrics.json").is_file()


@pytest.mark.slow
def test_interrupted_and_killed_workers_lose_nothing(tiny_data, tmp_path):
    folder = tmp_path / "s"
    with started([*words(tmp_path, tiny_data, 10_000, "--no-final"), "--workers", "2"]) as process:
        wait_for_trials(process, 2)
        assert wait_until(lambda: len(StatusReader(folder).read().workers) == 2, LONG_WAIT_S)
        victim = StatusReader(folder).read().workers[0].pid
        os.kill(victim, signal.SIGKILL)
        wait_for(process, lambda line: "died (signal 9); restarts in 1 s" in line)
        assert wait_until(lambda: count_other_workers(victim, folder) == 2, LONG_WAIT_S)
        wait_for_trials(process, 2)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert wait_until(lambda: all(is_gone(p.pid) for p in family), LONG_WAIT_S)
    assert StatusReader(folder).read().workers == []
    before = complete_trials(folder)
    budget = trial_records.count_finished(trial_records.all_trials(load_study(folder))) + 2
    run_command([*words(tmp_path, tiny_data, budget, "--no-final"), "--workers", "2"])
    check_complete(folder, budget, before)


@pytest.mark.slow
def test_a_stopped_study_can_be_resumed(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 1000)
    with started(args) as process:
        wait_for_trials(process, 1)
        stopped = CliRunner().invoke(cli.app, ["stop", str(tmp_path / "s")])
        assert stopped.stdout == f"{tmp_path / 's'}: sent 'stop' to 1 worker\n"
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "stopped by `lesionsearch stop`: " in out
    assert not (tmp_path / "s" / "final").exists()
    status = StatusReader(tmp_path / "s").read()
    assert (status.command, status.counts["running"]) == ("stop", 0)
    before = complete_trials(tmp_path / "s")
    more = len(before) + 2
    run_command(words(tmp_path, tiny_data, more))
    check_complete(tmp_path / "s", more, before)


@pytest.mark.slow
def test_a_killed_final_test_leaves_no_incomplete_folder(tiny_data, tmp_path):
    run_command(words(tmp_path, tiny_data, 1, "--no-final"))
    args = ["final", str(tmp_path / "s"), "--device", "cpu", "--threads", "1"]
    with started(args) as process:
        assert wait_until(lambda: (tmp_path / "s" / ".final.partial").exists(), 60)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "s" / "final").exists()
    assert StatusReader(tmp_path / "s").read().test is None
    run_command(args)
    assert (tmp_path / "s" / "final" / "metrics.json").is_file()
    assert not (tmp_path / "s" / ".final.partial").exists()
    assert StatusReader(tmp_path / "s").read().test_evaluations in (1, 2)


# --- in this process ---------------------------------------------------------------------------


def test_run_prints_each_step_and_writes_all_files(tiny_data, tmp_path):
    out = run_command(words(tmp_path, tiny_data, 2))
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
    again = run_command(words(tmp_path, tiny_data, 2))
    assert "resuming after 2 of 2 trials" in again
    assert StatusReader(folder).read().test_evaluations == 1
    assert StatusReader(folder).read().finished == 2


def test_a_search_without_a_complete_trial_exits_with_1(tiny_data, tmp_path):
    args = words(tmp_path, tiny_data, 2, "--set", "constraints.max_params_m=0.0001")
    # Five configurations, which all violate the constraint; a grid proposes each once.
    args += ["--set", "search.optimizer={adam: {lr: 0.01}}", "--set", "sampler.name=grid"]
    result = CliRunner().invoke(cli.app, args)
    assert result.exit_code == 1
    assert result.stderr == "lesionsearch: s: no complete trial (constraint 5)\n"
    assert "no new configuration is left to try: 5 closed" in result.stdout
    assert is_study(tmp_path / "s")
    assert not (tmp_path / "s" / "final").exists()
