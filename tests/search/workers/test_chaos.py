"""Workers that are stopped, killed or terminated with a stub and with real trainings."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from bench.faults.audit import fetch_rows
from bench.faults.run import stub_spec, write_pairs
from bench.faults.schedule import Shape
from lesionseg.config import TrialConfig
from search.monitoring.status import StatusReader
from search.spec.loading import load_spec
from search.storage import trial_records
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from search.study.opening import load_study, open_study
from search.trial_process.protocol import Trained, TrainJob
from search.trial_process.supervisor import StopConditions, supervise
from tests.conftest import write_folder
from tests.postgres import private_postgres  # noqa: F401
from tests.search import stub_training
from tests.search.helpers import LONG_WAIT_S, SLOT, tiny_plain, tiny_spec, wait_until, write_study
from tests.search.worker_processes import WorkerProcesses

pytestmark = pytest.mark.alone

COMMAND = Path(sys.executable).with_name("lesionsearch")
#: Seconds within which a terminated worker exits.
EXIT_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def worker_processes():
    with WorkerProcesses() as worker_processes:
        yield worker_processes


@pytest.fixture
def restartable(request):
    """A PostgreSQL server that can be restarted, and the URL of a database."""
    server = request.getfixturevalue("private_postgres")
    name = f"chaos_{os.urandom(4).hex()}"
    yield server, server.create(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


# --- the stub training; random faults are in bench.faults --------------------------------------


def stop_between_writes(worker_processes, worker: int, database: Path) -> None:
    """Stop a worker while it does not hold SQLite's lock, which could not be taken from it."""
    while True:
        assert worker_processes.signal(worker, signal.SIGSTOP)
        try:
            with contextlib.closing(sqlite3.connect(database, timeout=1)) as there:
                there.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            assert worker_processes.signal(worker, signal.SIGCONT)
            time.sleep(0.05)


def test_worker_that_was_stopped_for_too_long_writes_nothing(worker_processes, tmp_path):
    shape = Shape(trials=1, epochs=5)
    create_or_resume(stub_spec(shape), write_pairs(tmp_path / "data"), tmp_path / "s")
    location, environment = StudyLocation("s", tmp_path / "s"), {"LESIONSEARCH_GRACE": "2"}
    environment[stub_training.SECONDS] = "0.3 0.3"
    sleeper = worker_processes.start(location, tmp_path / "log", environment)

    def lines(kind: str) -> list[stub_training.Line]:
        return [line for line in stub_training.read_log(location.folder) if line.kind == kind]

    assert wait_until(lambda: lines(stub_training.SAVED), LONG_WAIT_S)
    stop_between_writes(worker_processes, sleeper, location.folder / "study.db")
    other = worker_processes.start(location, tmp_path / "log", environment)
    ended: dict[int, int] = {}
    assert wait_until(lambda: ended.update(worker_processes.ended()) or other in ended, LONG_WAIT_S)
    of_trials = "SELECT * FROM trials", "SELECT * FROM trial_user_attributes ORDER BY 1"
    of_trials += ("SELECT * FROM trial_intermediate_values ORDER BY 1",)
    before = [fetch_rows(location.folder / "study.db", query) for query in of_trials]
    log = stub_training.read_log(location.folder)
    assert worker_processes.signal(sleeper, signal.SIGCONT)
    assert wait_until(
        lambda: ended.update(worker_processes.ended()) or sleeper in ended, LONG_WAIT_S
    )
    assert ended == {sleeper: 0, other: 0}
    assert [fetch_rows(location.folder / "study.db", query) for query in of_trials] == before
    assert stub_training.read_log(location.folder) == log
    trials = trial_records.all_trials(load_study(location.folder))
    assert [trial_records.reason_of(t) for t in trials] == ["lost", None]
    assert trials[1].state.name == "COMPLETE"
    assert trials[1].user_attrs["resumed_at"] == lines(stub_training.STARTED)[1].epoch > 0
    assert not list((location.folder / "trials").rglob("state.pt"))


# --- the real training ---------------------------------------------------------------------------


@contextlib.contextmanager
def started(*args: object):
    """Run the real command; kill it and its descendants at the end."""
    process = subprocess.Popen(
        [COMMAND, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_tree(psutil.Process(process.pid))
            process.communicate()


def kill_tree(top: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def train_uninterrupted(folder: Path, config: dict, weights: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the same configuration without interruption."""
    trial_data = open_study(folder).trial_data
    data = (trial_data.cache, trial_data.train, trial_data.val)
    job = TrainJob(TrialConfig.from_dict(config).to_dict(), *data, SLOT, weights_path=weights)
    assert isinstance(supervise(job, lambda message: False, StopConditions()), Trained)
    return load_file(weights)


def check_as_if_uninterrupted(folder: Path, number: int, scratch: Path) -> None:
    trial = trial_records.all_trials(load_study(folder))[number]
    there = load_file(folder / "trials" / str(number) / "model.safetensors")
    straight = train_uninterrupted(
        folder, trial.user_attrs["config"], scratch / f"{number}.safetensors"
    )
    assert there.keys() == straight.keys()
    assert all(torch.equal(there[name], straight[name]) for name in straight)


def chains(folder: Path) -> dict[int, list]:
    """Return the attempts of each trial by the number of the first."""
    attempts: dict[int, list] = {}
    for trial in trial_records.all_trials(load_study(folder)):
        attempts.setdefault(trial.user_attrs.get("requeued_from", trial.number), []).append(trial)
    return attempts


def epochs_done(folder: Path) -> int:
    """Count the epochs of all trials, repeated ones once."""
    trials = chains(folder).values()
    return sum(
        max((e for t in chain for e in t.intermediate_values), default=0) for chain in trials
    )


def write_real(path: Path, changes: dict) -> Path:
    plain = {
        "name": "s",
        "data": {"image_size": 64, "limit": {"train": 100, "val": 30, "test": 10}},
        "budget": {"trials": 3, "epochs": 40},
        "sampler": {"name": "random"},
        "search": {
            "model": {"unet": {"width": 8, "depth": 3}},
            "loss": "bce_dice",
            "augment": "flips",
            "schedule": "cosine",
        },
    }
    path.write_text(yaml.safe_dump(tiny_plain({**plain, **changes})))
    return path


@pytest.mark.long
def test_weights_equal_those_of_an_uninterrupted_study(real_data, tmp_path):
    """One of three workers is killed with its descendants, five times."""
    folder, study = tmp_path / "s", write_real(tmp_path / "study.yaml", {})
    args = ["run", study, "--data", real_data / "isic2018", "--out", folder, "--no-final"]
    with started(*args, "--workers", "3", "--threads", "1", "--device", "cpu") as run:
        for killed in range(5):
            assert wait_until(lambda: (folder / "run.json").exists(), 120)
            due = 18 * (killed + 1)
            assert wait_until(lambda due=due: epochs_done(folder) >= due, 120)
            # A trial that is lost too often fails.
            held = [w for w in StatusReader(folder).read().workers if w.trial is not None]
            trials = trial_records.all_trials(load_study(folder))
            held.sort(key=lambda w, trials=trials: trials[w.trial].user_attrs.get("times_lost", 0))
            kill_tree(psutil.Process(held[0].pid))
        output, _ = run.communicate(timeout=240)
        assert run.returncode == 0, output
    found = chains(folder)
    assert StatusReader(folder).read().counts == {
        "waiting": 0,
        "running": 0,
        "complete": 3,
        "pruned": 0,
        "failed": 0,
        "closed": 5,
    }
    assert [[t.state.name for t in chain if t.state.name == "COMPLETE"] for chain in found.values()]
    resumed = [chain[-1] for chain in found.values() if chain[-1].user_attrs.get("resumed_at")]
    assert resumed
    for trial in resumed:
        check_as_if_uninterrupted(folder, trial.number, tmp_path)


#: An epoch takes seconds.
LONG = {"budget": {"trials": 1, "epochs": 2}, "data.limit.train": 600, "data.image_size": 96}


def wait_for_second_epoch(run: subprocess.Popen, folder: Path) -> None:
    """Wait until the second epoch of the trial is running."""
    assert wait_until(lambda: epochs_done(folder) == 1, 120)
    family = psutil.Process(run.pid).children(recursive=True)

    def cpu_seconds() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in family if p.is_running())

    before = cpu_seconds()
    assert wait_until(lambda: cpu_seconds() > before + 1.5, 60)


def check_terminates(run: subprocess.Popen) -> str:
    family = psutil.Process(run.pid).children(recursive=True)
    began = time.monotonic()
    run.terminate()
    output, _ = run.communicate(timeout=60)
    assert time.monotonic() - began < EXIT_TIMEOUT_S, output
    assert run.returncode == 0, output
    assert not [p for p in psutil.wait_procs(family, 2)[1] if p.is_running()]
    return output


def run_to_the_end(*args: object) -> None:
    with started("worker", "s", *args, "--device", "cpu", "--threads", "1") as run:
        output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    assert "the study is done" in output


@pytest.mark.slow
def test_terminated_worker_requeues_its_trial(real_data, tmp_path):
    study, folder = write_real(tmp_path / "study.yaml", LONG), tmp_path / "s"
    create_or_resume(load_spec(str(study)), real_data / "isic2018", folder)
    with started("worker", "s", "--out", folder, "--device", "cpu", "--threads", "1") as run:
        wait_for_second_epoch(run, folder)
        check_terminates(run)
    trials = trial_records.all_trials(load_study(folder))
    assert [(t.state.name, trial_records.reason_of(t)) for t in trials] == [
        ("FAIL", "interrupted"),
        ("WAITING", None),
    ]
    assert trials[1].user_attrs["attempts"] == [0]
    assert (folder / "trials" / "0" / "state.pt").is_file()
    assert StatusReader(folder).read().workers == []
    run_to_the_end("--out", folder)
    done = trial_records.all_trials(load_study(folder))[1]
    assert (done.state.name, done.user_attrs["resumed_at"]) == ("COMPLETE", 1)
    assert not list((folder / "trials").rglob("state.pt"))
    check_as_if_uninterrupted(folder, 1, tmp_path)


@pytest.mark.slow
def test_worker_terminates_while_the_database_is_unavailable(real_data, tmp_path, restartable):
    server, url = restartable
    study, folder = write_real(tmp_path / "study.yaml", LONG), tmp_path / "s"
    create_or_resume(load_spec(str(study)), real_data / "isic2018", folder, url)
    args = ("--out", folder, "--storage", url)
    with started("worker", "s", *args, "--device", "cpu", "--threads", "1") as run:
        wait_for_second_epoch(run, folder)
        server.stop()
        try:
            check_terminates(run)
        finally:
            server.start()
    assert (folder / "trials" / "0" / "state.pt").is_file()
    run_to_the_end(*args)
    trials = trial_records.all_trials(load_study(folder))
    assert [(t.state.name, trial_records.reason_of(t)) for t in trials] == [
        ("FAIL", "lost"),
        ("COMPLETE", None),
    ]
    assert trials[1].user_attrs["resumed_at"] == 1
    assert not list((folder / "trials").rglob("state.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "study"])
def test_worker_with_other_data_or_another_study_changes_nothing(tiny_data, tmp_path, what):
    folder = tmp_path / "s"
    create_or_resume(tiny_spec(), tiny_data, folder)
    given = {
        "data": write_folder(tmp_path / "other", 31),
        "study": write_study(tmp_path / "other.yaml", {"budget.epochs": 3}),
    }[what]

    def written() -> list[str]:
        with contextlib.closing(sqlite3.connect(folder / "study.db")) as connection:
            return list(connection.iterdump())

    before = written()
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    run = subprocess.run(
        [COMMAND, "worker", "s", "--out", folder, f"--{what}", given],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert {"data": "other data", "study": "budget.epochs differ"}[what] in run.stderr
    assert written() == before
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
