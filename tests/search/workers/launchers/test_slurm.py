"""The engine for SLURM: submitit's local executor for real, and Slurm itself where it can run."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from lesionseg.errors import InputError
from search.monitoring.status import status
from search.storage.database import STORAGE_FILE_VARIABLE, STORAGE_VARIABLE, storage_url
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, WorkerResult
from search.workers.launchers import slurm_fleet
from search.workers.launchers.slurm import SlurmSettings, run_on_slurm
from search.workers.launchers.slurm_job import Asked, WorkerJob
from tests.search.helpers import write_study

pytestmark = pytest.mark.alone

submitit = pytest.importorskip("submitit")

COMMAND = Path(sys.executable).with_name("lesionsearch")
LOCAL = SlurmSettings(cluster="local", gpus=0, cpus=1, time_minutes=10)
URL = "postgresql+psycopg://ann:open-sesame@db/studies"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study's folder as the stub knows it, and none of the settings of whoever runs the tests."""
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
    monkeypatch.delenv(STORAGE_FILE_VARIABLE, raising=False)
    monkeypatch.setattr(slurm_fleet, "FIRST_PAUSE", 0.01)
    for name in ("todo", "doing", "done", "log"):
        (tmp_path / name).mkdir()
    return tmp_path


# What runs in the jobs: items are files, claimed by renaming them. ------------------------------


def log(folder, what):
    job = submitit.JobEnvironment().job_id
    name = f"{time.time_ns()}-{os.getpid()}"
    (folder / name).write_text(f"{what} {job} {os.getpid()}")
    (folder / name).rename(folder / "log" / name)  # whole, or not at all


def claim(folder):
    for item in sorted((folder / "todo").iterdir()):
        try:
            return item.rename(folder / "doing" / item.name)
        except FileNotFoundError:  # another was faster
            continue
    return None


def serve(join, slot, stopping):
    """Works items off; one called long waits to be told, one called poison kills its worker."""
    log(join.folder, "began")
    count = 0
    while (item := claim(join.folder)) is not None:
        if item.name.startswith("poison"):
            item.rename(join.folder / "done" / item.name)
            os.kill(os.getpid(), signal.SIGKILL)
        if item.name.startswith("long") and not (join.folder / "release").exists():
            (join.folder / f"held-by-{os.getpid()}").write_text(item.name)
            log(join.folder, "waits")
            assert stopping.wait(60)
            item.rename(join.folder / "todo" / item.name)
            log(join.folder, "asked")
            return WorkerResult(count, "asked")
        item.rename(join.folder / "done" / item.name)
        count += 1
    return WorkerResult(count, "done")


def serve_refused(join, slot, stopping):
    if claim(join.folder) is not None:
        raise InputError("data: no such folder /nowhere; give --data")
    assert stopping.wait(60)
    log(join.folder, "asked")
    return WorkerResult(0, "asked")


def serve_poisoned(join, slot, stopping):
    log(join.folder, "began")
    os.kill(os.getpid(), signal.SIGKILL)


def serve_broken(join, slot, stopping):
    log(join.folder, "began")
    raise RuntimeError("boom")


def serve_telling(join, slot, stopping):
    told = storage_url(join.storage, join.folder).render_as_string(hide_password=False)
    (join.folder / "done" / hashlib.sha256(told.encode()).hexdigest()).touch()
    return WorkerResult(1, "done")


# What the tests see. ----------------------------------------------------------------------------


def seen(folder, what):
    """(job, pid) of each log line of that kind, oldest first."""
    rows = [path.read_text().split() for path in sorted((folder / "log").iterdir())]
    return [(job, int(pid)) for kind, job, pid in rows if kind == what]


def drive(folder, serve_, *, workers=2, is_done=lambda: False, stopping=None, **more):
    events = more.pop("events", [])
    run_on_slurm(
        StudyLocation("study", folder, **more.pop("join", {})),
        slot=Slot("cpu"),
        workers=workers,
        stopping=stopping or threading.Event(),
        is_done=is_done,
        settings=more.pop("settings", LOCAL),
        serve=serve_,
        on_event=events.append,
    )
    return events


def put(folder, *names):
    for name in names:
        (folder / "todo" / name).touch()


def done(folder):
    return sorted(path.name for path in (folder / "done").iterdir())


def holding(folder, text):
    """The files under a folder that hold a text, whatever else is in them."""
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_two_workers_share_the_work_and_each_item_is_done_once(folder):
    items = [f"item{i:02}" for i in range(20)]
    put(folder, *items)
    events = drive(folder, serve)
    assert done(folder) == items
    assert len(seen(folder, "began")) == 2
    ended = [event for event in events if "ended: done" in event]
    assert sum(int(event.split()[-2]) for event in ended) == 20
    assert (folder / "slurm").is_dir()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_rest_is_done(folder):
    put(folder, "a", "poison", "z")
    events = drive(folder, serve, workers=1)
    assert done(folder) == ["a", "poison", "z"]
    assert len(seen(folder, "began")) == 2
    assert any("gone without a result" in event for event in events)


def test_a_worker_that_dies_each_time_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(slurm_fleet, "MAX_LOSSES", 1)
    from search.errors import JobFailed  # jobs import this file, and need no torch for it

    with pytest.raises(JobFailed, match="every worker lost 2 jobs in a row; see"):
        drive(folder, serve_poisoned, workers=1)
    assert len(seen(folder, "began")) == 2


def test_an_unexpected_error_is_a_loss_that_names_its_log(folder, monkeypatch):
    monkeypatch.setattr(slurm_fleet, "MAX_LOSSES", 0)
    from search.errors import JobFailed

    events = []
    with pytest.raises(JobFailed):
        drive(folder, serve_broken, workers=1, events=events)
    path = next(e.split("see ")[1].split(";")[0] for e in events if "failed; see" in e)
    assert "RuntimeError: boom" in Path(path).read_text()


@pytest.mark.slow
def test_an_input_error_of_a_worker_is_one_here_and_ends_the_others(folder):
    put(folder, "only one of two may claim this")
    with pytest.raises(InputError, match=r"^data: no such folder /nowhere; give --data$"):
        drive(folder, serve_refused)
    # The other may have been told to end before it had begun.
    assert len(seen(folder, "asked")) <= 1
    until(lambda: no_process_of(folder))


def until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)


def no_process_of(folder):
    """Whether no process works on that folder: their command lines name it."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return str(folder) not in listed.stdout


@pytest.mark.slow
def test_stopping_puts_the_work_down_within_seconds_and_leaves_nobody(folder):
    put(folder, "long1", "long2")
    stopping, began = threading.Event(), []

    def stop_when_both_wait():
        if len(seen(folder, "waits")) == 2 and not began:
            began.append(time.time_ns())
            stopping.set()
        return False

    drive(folder, serve, is_done=stop_when_both_wait, stopping=stopping)
    assert len(seen(folder, "asked")) == 2
    last = max(int(path.name.partition("-")[0]) for path in (folder / "log").iterdir())
    # That is when the trials are down; how fast processes then end is the host's affair.
    assert (last - began[0]) / 1e9 < 15
    assert sorted(p.name for p in (folder / "todo").iterdir()) == ["long1", "long2"]
    until(lambda: no_process_of(folder))


@pytest.mark.slow
def test_a_pre_empted_job_puts_its_trial_down_and_then_runs_again_as_the_same_job(folder):
    put(folder, "long")
    told = []

    def preempt():
        waiting = seen(folder, "waits")
        if waiting and not told:
            told.append(waiting[0])
            (folder / "release").touch()
            os.kill(waiting[0][1], signal.SIGUSR2)
        return False

    events = drive(folder, serve, workers=1, is_done=preempt)
    (first, second), (asked,) = seen(folder, "began"), seen(folder, "asked")
    assert first[0] == second[0] and first[1] != second[1]  # one job, two processes
    assert asked == first
    assert done(folder) == ["long"]
    assert sum("submitted" in event for event in events) == 1
    order = [path.read_text().split()[0] for path in sorted((folder / "log").iterdir())]
    assert order == ["began", "waits", "asked", "began"]


@pytest.mark.slow
def test_without_requeue_the_engine_submits_another_job_instead(folder):
    put(folder, "long")
    told = []

    def preempt():
        waiting = seen(folder, "waits")
        if waiting and not told:
            told.append(True)
            (folder / "release").touch()
            os.kill(waiting[0][1], signal.SIGUSR2)
        return False

    settings = SlurmSettings(cluster="local", gpus=0, requeue=False)
    events = drive(folder, serve, workers=1, is_done=preempt, settings=settings)
    first, second = seen(folder, "began")
    assert first[0] != second[0]
    assert done(folder) == ["long"]
    assert sum("submitted" in event for event in events) == 2


@pytest.mark.slow
def test_a_study_that_is_done_ends_workers_that_wait(folder, monkeypatch):
    monkeypatch.setattr(slurm_fleet, "GRACE", 0.5)
    put(folder, "long")
    drive(folder, serve, workers=1, is_done=lambda: bool(seen(folder, "waits")))
    assert len(seen(folder, "asked")) == 1
    until(lambda: no_process_of(folder))


@pytest.mark.slow
def test_a_url_of_the_command_line_is_in_one_file_that_only_its_owner_reads(folder):
    found = []

    def look():
        found.extend((p, p.stat().st_mode & 0o777) for p in holding(folder, "open-sesame"))
        return False

    drive(folder, serve_telling, workers=1, is_done=look, join={"storage": URL})
    assert done(folder) == [hashlib.sha256(URL.encode()).hexdigest()]
    assert {path.suffix for path, _ in found} == {".url"}
    assert {mode for _, mode in found} == {0o600}
    assert holding(folder, "open-sesame") == []  # nor afterwards


@pytest.mark.slow
@pytest.mark.parametrize("given", [URL, None])
def test_a_url_of_the_environment_is_written_nowhere(folder, monkeypatch, given):
    monkeypatch.setenv(STORAGE_VARIABLE, URL)
    found = []

    def look():
        found.extend(holding(folder, "open-sesame"))
        return False

    drive(folder, serve_telling, workers=1, is_done=look, join={"storage": given})
    assert done(folder) == [hashlib.sha256(URL.encode()).hexdigest()]
    assert found == holding(folder, "open-sesame") == []


def test_an_environment_that_does_not_reach_the_job_is_told_and_not_replaced_by_sqlite(folder):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    job = WorkerJob(
        StudyLocation("study", folder), Slot("cpu"), in_environment=True, serve=serve_telling
    )
    try:
        assert "LESIONSEARCH_STORAGE does not reach the jobs" in job(0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done(folder) == []


@pytest.mark.slow
def test_a_url_in_a_file_of_the_users_own_is_read_by_the_job(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("secret") / "url"
    place.touch(0o600)
    place.write_text(f"{URL}\n")
    drive(folder, serve_telling, workers=1, join={"storage": f"@{place}"})
    assert done(folder) == [hashlib.sha256(URL.encode()).hexdigest()]
    assert holding(folder, "open-sesame") == []


def test_settings_are_read_from_text_and_the_rest_goes_to_sbatch():
    given = {"time_minutes": "90", "memory_gb": "7.5", "requeue": "false", "partition": "gpu"}
    settings = SlurmSettings.parse(given | {"constraint": "a100", "exclusive": "true"})
    assert settings == SlurmSettings(
        time_minutes=90,
        memory_gb=7.5,
        requeue=False,
        partition="gpu",
        extra={"constraint": "a100", "exclusive": True},
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time_minutes": "4"}, "time_minutes: must be at least 5, got 4"),
        ({"time_minutes": "2h"}, "time_minutes: must be a whole number, got '2h'"),
        ({"gpus": "-1"}, "gpus: must be at least 0, got -1"),
        ({"cpus": "0"}, "cpus: must be at least 1, got 0"),
        ({"memory_gb": "lots"}, "memory_gb: must be a number, got 'lots'"),
        ({"memory_gb": "nan"}, "memory_gb: must be at least 0.5, got nan"),
        ({"requeue": "maybe"}, "requeue: must be true or false, got 'maybe'"),
        ({"cluster": "pbs"}, "cluster: must be slurm or local, got 'pbs'"),
    ],
)
def test_wrong_settings_are_told_with_rule_and_value(given, message):
    with pytest.raises(InputError, match=f"^slurm: {re.escape(message)}$"):
        SlurmSettings.parse(given)


def test_a_host_without_slurm_is_told_where_to_start(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(InputError, match="no srun on this host"):
        drive(folder, serve, settings=SlurmSettings())


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(folder, workers):
    with pytest.raises(InputError, match=f"workers must be at least 1, got {workers}"):
        drive(folder, serve, workers=workers)


def test_a_signal_ends_a_wait_that_it_interrupts():
    asked = Asked()
    before = signal.signal(signal.SIGALRM, asked.hear)
    try:
        assert not asked.is_set() and not asked.wait(0)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert asked.wait(30)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert asked.is_set() and asked.wait(0) and asked.wait()  # and it stays set
    assert asked.heard == {signal.SIGALRM}


@pytest.mark.slow
def test_a_study_by_submitted_jobs_that_trains(tiny_data, tmp_path):
    """The real command; submitit's own processes stand for SLURM's jobs."""
    study = write_study(tmp_path / "tiny.yaml", {"budget.trials": 6})
    command = [COMMAND, "run", study, "--data", tiny_data, "--out", tmp_path / "s"]
    command += ["--engine", "slurm", "--engine-set", "cluster=local", "--workers", "2"]
    command += ["--device", "cpu", "--threads", "1"]
    done_ = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done_.returncode, done_.stderr) == (0, ""), done_
    found = status(tmp_path / "s")
    assert sum(found["counts"].values()) == 6
    assert found["counts"]["complete"] > 0
    assert found["counts"]["failed"] == found["counts"]["waiting"] == 0
    assert (tmp_path / "s" / "final" / "metrics.json").is_file()


# Slurm itself, where a root user may start one. -------------------------------------------------

CONF = """\
ClusterName=try
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={at}/munge.sock,cred_expire=5
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def cluster():
    """One node with four slots, which are not this host's cores; no accounting, no cgroups."""
    if os.geteuid() != 0:
        pytest.skip("starting a Slurm of one's own needs root")
    if lacking := [name for name in (*DAEMONS, "srun") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(lacking)} (Debian: slurm-wlm, munge)")
    at, host = Path(tempfile.mkdtemp(prefix="slurm")), socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (at / name).mkdir()
    (at / "munge.key").write_bytes(os.urandom(1024))
    (at / "munge.key").chmod(0o600)
    at.chmod(0o755)
    (at / "slurm.conf").write_text(CONF.format(at=at, host=host, ports=free_ports(2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(at / "slurm.conf"))
        places = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log"}
        options = [f"--{name}={at}/munge.{end}" for name, end in places.items()]
        try:
            run("munged", "--force", f"--seed-file={at}/munge.seed", *options)
            run("slurmctld")
            run("slurmd", "-N", host)
            until(lambda: "idle" in run("sinfo", "-h", "-o", "%T"))
            yield
        finally:
            for name in ("slurmd", "slurmctld", "munge"):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(pid := int((at / f"{name}.pid").read_text()), signal.SIGTERM)
                    until(lambda pid=pid: not psutil.pid_exists(pid))
            shutil.rmtree(at, ignore_errors=True)


ON_SLURM = SlurmSettings(gpus=0, cpus=1, time_minutes=30, partition="main")


def in_queue():
    return run("squeue", "-h", "--array", "-o", "%i|%T").split()


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "lost"),
    [("scontrol requeue", 0), ("scancel --signal=TERM", 0), ("scancel", 1), ("kill -9", 1)],
)
def test_on_slurm_a_job_that_is_put_down_or_lost_comes_back(folder, cluster, how, lost):
    """Slurm itself brings back what was warned or requeued; the engine replaces what is gone."""
    put(folder, "long1", "long2")
    told, events = [], []

    def act():
        if len(waiting := seen(folder, "waits")) == 2 and not told:
            told.extend(waiting)
            (folder / "release").touch()
            (first, pid), (second, _) = waiting
            run(*how.split(), str(pid) if how == "kill -9" else first)
            if how == "kill -9":  # nobody puts its item back
                item = (folder / f"held-by-{pid}").read_text()
                (folder / "doing" / item).rename(folder / "todo" / item)
            run("scancel", "--signal=USR2", second)  # as before the end of its time
        return False

    drive(folder, serve, settings=ON_SLURM, is_done=act, events=events)
    (first, _), (second, _) = told
    starts = Counter(job for job, _ in seen(folder, "began"))
    assert starts.pop(first) == 2 - lost and starts.pop(second) == 2
    assert list(starts.values()) == [1] * lost
    assert sum("in place of a lost job" in event for event in events) == lost
    assert len(seen(folder, "asked")) == 2 - (how == "kill -9")
    assert done(folder) == ["long1", "long2"]
    assert in_queue() == []


@pytest.mark.long
def test_on_slurm_stopping_cancels_what_runs_and_what_waits(folder, cluster):
    put(folder, *(f"long{i}" for i in range(6)))
    stopping, began = threading.Event(), []

    def stop_when_four_wait():
        if len(seen(folder, "waits")) == 4:
            began.append(time.monotonic())
            assert sum(row.endswith("PENDING") for row in in_queue()) == 2
            stopping.set()
        return False

    drive(
        folder,
        serve,
        workers=6,
        settings=ON_SLURM,
        is_done=stop_when_four_wait,
        stopping=stopping,
        join={"storage": URL},
    )
    assert time.monotonic() - began[0] < 15
    assert len(seen(folder, "asked")) == 4
    assert in_queue() == []
    assert holding(folder, "open-sesame") == []


@pytest.mark.long
def test_on_slurm_a_refusal_of_sbatch_is_an_input_error(folder, cluster):
    with pytest.raises(InputError, match=r"sbatch refused the jobs: .*partition"):
        drive(folder, serve, settings=SlurmSettings(gpus=0, partition="nowhere"))
