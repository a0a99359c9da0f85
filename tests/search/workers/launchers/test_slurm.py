"""The SLURM launcher: with submitit's local executor, and with SLURM where it can run."""

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
from search.errors import JobFailed, WorkerBlocked
from search.monitoring.status import StatusReader
from search.storage.database import STORAGE_FILE_VARIABLE, STORAGE_VARIABLE, storage_url
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.launchers import slurm_fleet
from search.workers.launchers.launcher import LaunchContext, RestartPolicy
from search.workers.launchers.slurm import SlurmSettings, run_on_slurm
from search.workers.launchers.slurm_job import WorkerJob
from search.workers.worker_result import StopReason, WorkerResult
from tests.search.helpers import wait_until, write_study

submitit = pytest.importorskip("submitit")

COMMAND = Path(sys.executable).with_name("lesionsearch")
LOCAL = SlurmSettings(cluster="local", gpus=0, cpus=1, time_minutes=10)
URL = "postgresql+psycopg://ann:open-sesame@db/studies"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the stub's items, without storage variables in the environment."""
    monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
    monkeypatch.delenv(STORAGE_FILE_VARIABLE, raising=False)
    for name in ("todo", "doing", "done", "log"):
        (tmp_path / name).mkdir()
    return tmp_path


# --- work of the jobs: items are files that are claimed by renaming -------------------------------


def log(folder, kind):
    job = submitit.JobEnvironment().job_id
    name = f"{time.time_ns()}-{os.getpid()}"
    (folder / name).write_text(f"{kind} {job} {os.getpid()}")
    (folder / name).rename(folder / "log" / name)  # atomic


def claim(folder):
    for item in sorted((folder / "todo").iterdir()):
        try:
            return item.rename(folder / "doing" / item.name)
        except FileNotFoundError:
            continue
    return None


def do_items(location, slot, stop_event):
    """Process items; "long" waits for the stop event, "poison" kills its worker."""
    log(location.folder, "began")
    count = 0
    while (item := claim(location.folder)) is not None:
        if item.name.startswith("poison"):
            item.rename(location.folder / "done" / item.name)
            os.kill(os.getpid(), signal.SIGKILL)
        if item.name.startswith("long") and not (location.folder / "release").exists():
            (location.folder / f"held-by-{os.getpid()}").write_text(item.name)
            log(location.folder, "waits")
            assert stop_event.wait(60)
            item.rename(location.folder / "todo" / item.name)
            log(location.folder, "stopped")
            return WorkerResult(count, StopReason.STOPPED)
        item.rename(location.folder / "done" / item.name)
        count += 1
    return WorkerResult(count, StopReason.DONE)


def raise_input_error(location, slot, stop_event):
    if claim(location.folder) is not None:
        raise InputError("data: no such folder /nowhere; give --data")
    assert stop_event.wait(60)
    log(location.folder, "stopped")
    return WorkerResult(0, StopReason.STOPPED)


def block(location, slot, stop_event):
    log(location.folder, "began")
    raise WorkerBlocked("s: 3 trials in a row failed")


def crash(location, slot, stop_event):
    log(location.folder, "began")
    raise RuntimeError("boom")


def write_url_hash(location, slot, stop_event):
    url = storage_url(location.storage, location.folder).render_as_string(hide_password=False)
    (location.folder / "done" / hashlib.sha256(url.encode()).hexdigest()).touch()
    return WorkerResult(1, StopReason.DONE)


# --- observation ---------------------------------------------------------------------------------


def logged(folder, kind):
    """Return job and pid of each log line of a kind, oldest first."""
    rows = [path.read_text().split() for path in sorted((folder / "log").iterdir())]
    return [(job, int(pid)) for each, job, pid in rows if each == kind]


def drive(
    folder,
    work,
    *,
    workers=2,
    is_done=lambda: False,
    stop_event=None,
    storage=None,
    settings=LOCAL,
    events=None,
    max_failures=6,
):
    """Run the launcher; return its events."""
    events = [] if events is None else events
    context = LaunchContext(
        StudyLocation("study", folder, storage),
        stop_event or threading.Event(),
        is_done=is_done,
        on_event=events.append,
        restart_policy=RestartPolicy(max_failures, first_pause_s=0.01),
    )
    run_on_slurm(context, Slot("cpu"), workers=workers, settings=settings, work=work)
    return events


def put(folder, *names):
    for name in names:
        (folder / "todo" / name).touch()


def done(folder):
    return sorted(path.name for path in (folder / "done").iterdir())


def files_with(folder, text):
    """Return the files under a folder that contain a text."""
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_two_workers_do_each_item_once(folder):
    items = [f"item{i:02}" for i in range(20)]
    put(folder, *items)
    events = drive(folder, do_items)
    assert done(folder) == items
    assert len(logged(folder, "began")) == 2
    ended = [event for event in events if "ended: done" in event]
    assert sum(int(event.split()[-2]) for event in ended) == 20
    assert (folder / "slurm").is_dir()


@pytest.mark.slow
def test_killed_worker_is_replaced(folder):
    put(folder, "a", "poison", "z")
    events = drive(folder, do_items, workers=1)
    assert done(folder) == ["a", "poison", "z"]
    assert len(logged(folder, "began")) == 2
    assert any("gone without a result" in event for event in events)


def test_unexpected_error_names_the_log(folder, monkeypatch):
    events = []
    with pytest.raises(JobFailed):
        drive(folder, crash, workers=1, events=events, max_failures=1)
    path = next(e.split("see ")[1].split(";")[0] for e in events if "failed; see" in e)
    assert "RuntimeError: boom" in Path(path).read_text()


@pytest.mark.slow
def test_input_error_of_a_worker_ends_all(folder):
    put(folder, "only one of two may claim this")
    with pytest.raises(InputError, match=r"^data: no such folder /nowhere; give --data$"):
        drive(folder, raise_input_error)
    # The other one may have been stopped before it started.
    assert len(logged(folder, "stopped")) <= 1
    until(lambda: no_process_of(folder))


@pytest.mark.slow
def test_blocked_workers_are_not_replaced(folder):
    with pytest.raises(JobFailed, match="every worker was given up; s: 3 trials in a row failed"):
        drive(folder, block)
    assert len(logged(folder, "began")) == 2


def until(condition, seconds=30):
    assert wait_until(condition, seconds)


def no_process_of(folder):
    """Return whether no command line of a process names the folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return str(folder) not in listed.stdout


@pytest.mark.slow
def test_stop_event_ends_all_jobs(folder):
    put(folder, "long1", "long2")
    stopping, began = threading.Event(), []

    def stop_when_both_wait():
        if len(logged(folder, "waits")) == 2 and not began:
            began.append(time.time_ns())
            stopping.set()
        return False

    drive(folder, do_items, is_done=stop_when_both_wait, stop_event=stopping)
    assert len(logged(folder, "stopped")) == 2
    last = max(int(path.name.partition("-")[0]) for path in (folder / "log").iterdir())
    assert (last - began[0]) / 1e9 < 15
    assert sorted(p.name for p in (folder / "todo").iterdir()) == ["long1", "long2"]
    until(lambda: no_process_of(folder))


@pytest.mark.slow
def test_preempted_job_is_requeued(folder):
    put(folder, "long")
    preempted = []

    def preempt():
        waiting = logged(folder, "waits")
        if waiting and not preempted:
            preempted.append(waiting[0])
            (folder / "release").touch()
            os.kill(waiting[0][1], signal.SIGUSR2)
        return False

    events = drive(folder, do_items, workers=1, is_done=preempt)
    (first, second), (stopped,) = logged(folder, "began"), logged(folder, "stopped")
    assert first[0] == second[0] and first[1] != second[1]  # one job, two processes
    assert stopped == first
    assert done(folder) == ["long"]
    assert sum("submitted" in event for event in events) == 1
    order = [path.read_text().split()[0] for path in sorted((folder / "log").iterdir())]
    assert order == ["began", "waits", "stopped", "began"]


@pytest.mark.slow
def test_done_study_ends_waiting_workers(folder, monkeypatch):
    monkeypatch.setattr(slurm_fleet, "END_TIMEOUT_S", 0.5)
    put(folder, "long")
    drive(folder, do_items, workers=1, is_done=lambda: bool(logged(folder, "waits")))
    assert len(logged(folder, "stopped")) == 1
    until(lambda: no_process_of(folder))


@pytest.mark.slow
def test_url_is_in_one_private_file(folder):
    found = []

    def record():
        found.extend((p, p.stat().st_mode & 0o777) for p in files_with(folder, "open-sesame"))
        return False

    drive(folder, write_url_hash, workers=1, is_done=record, storage=URL)
    assert done(folder) == [hashlib.sha256(URL.encode()).hexdigest()]
    assert {path.suffix for path, _ in found} == {".url"}
    assert {mode for _, mode in found} == {0o600}
    assert files_with(folder, "open-sesame") == []  # nor afterwards


@pytest.mark.slow
@pytest.mark.parametrize("given", [URL, None])
def test_url_of_the_environment_is_not_written(folder, monkeypatch, given):
    monkeypatch.setenv(STORAGE_VARIABLE, URL)
    found = []

    def record():
        found.extend(files_with(folder, "open-sesame"))
        return False

    drive(folder, write_url_hash, workers=1, is_done=record, storage=given)
    assert done(folder) == [hashlib.sha256(URL.encode()).hexdigest()]
    assert found == files_with(folder, "open-sesame") == []


def test_environment_that_does_not_reach_the_job_is_an_error(folder):
    job = WorkerJob(
        StudyLocation("study", folder), Slot("cpu"), uses_environment=True, work=write_url_hash
    )
    assert "LESIONSEARCH_STORAGE does not reach the jobs" in job(0)
    assert done(folder) == []


def test_unknown_settings_are_options_of_sbatch():
    given = {"time_minutes": "90", "memory_gb": "7.5", "requeue": "false", "partition": "gpu"}
    settings = SlurmSettings.parse(given | {"constraint": "a100", "exclusive": "true"})
    assert settings == SlurmSettings(
        time_minutes=90,
        memory_gb=7.5,
        requeue=False,
        partition="gpu",
        constraint="a100",
        exclusive=True,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"time_minutes": "4"},
            "time_minutes: input should be greater than or equal to 5, got '4'",
        ),
        ({"time_minutes": "2h"}, "time_minutes: input should be a valid integer"),
        ({"gpus": "-1"}, "gpus: input should be greater than or equal to 0, got '-1'"),
        ({"cpus": "0"}, "cpus: input should be greater than or equal to 1, got '0'"),
        ({"memory_gb": "lots"}, "memory_gb: input should be a valid number"),
        ({"memory_gb": "nan"}, "memory_gb: input should be a finite number, got 'nan'"),
        ({"requeue": "maybe"}, "requeue: input should be a valid boolean"),
        ({"cluster": "pbs"}, "cluster: input should be 'slurm' or 'local', got 'pbs'"),
    ],
)
def test_invalid_settings_are_refused(given, message):
    with pytest.raises(InputError, match=f"^slurm: {re.escape(message)}"):
        SlurmSettings.parse(given)


def test_host_without_slurm_is_refused(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(InputError, match="no srun on this host"):
        drive(folder, do_items, settings=SlurmSettings())


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(folder, workers):
    with pytest.raises(InputError, match=f"workers must be at least 1, got {workers}"):
        drive(folder, do_items, workers=workers)


@pytest.mark.slow
def test_study_on_submitted_jobs(tiny_data, tmp_path):
    """The real command with processes instead of SLURM jobs."""
    study = write_study(tmp_path / "tiny.yaml", {"budget.trials": 4})
    command = [COMMAND, "run", study, "--data", tiny_data, "--out", tmp_path / "s"]
    command += ["--engine", "slurm", "--engine-set", "cluster=local", "--workers", "2"]
    command += ["--device", "cpu", "--threads", "1"]
    done_ = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done_.returncode, done_.stderr) == (0, ""), done_
    counts = StatusReader(tmp_path / "s").read().counts
    assert sum(counts.values()) == 4
    assert counts["complete"] > 0
    assert counts["failed"] == counts["waiting"] == 0
    assert (tmp_path / "s" / "final" / "metrics.json").is_file()


# --- SLURM itself, which root can start -----------------------------------------------------------

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
    """SLURM with one node and four slots, without accounting and cgroups."""
    if os.geteuid() != 0:
        pytest.skip("starting SLURM needs root")
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
def test_on_slurm_stopped_and_lost_jobs_are_repeated(folder, cluster, how, lost):
    """SLURM requeues a warned job; the launcher replaces a lost one."""
    put(folder, "long1", "long2")
    acted, events = [], []

    def act():
        if len(waiting := logged(folder, "waits")) == 2 and not acted:
            acted.extend(waiting)
            (folder / "release").touch()
            (first, pid), (second, _) = waiting
            run(*how.split(), str(pid) if how == "kill -9" else first)
            if how == "kill -9":  # its item is not put back
                item = (folder / f"held-by-{pid}").read_text()
                (folder / "doing" / item).rename(folder / "todo" / item)
            run("scancel", "--signal=USR2", second)  # as at the end of its time
        return False

    drive(folder, do_items, settings=ON_SLURM, is_done=act, events=events)
    (first, _), (second, _) = acted
    starts = Counter(job for job, _ in logged(folder, "began"))
    assert starts.pop(first) == 2 - lost and starts.pop(second) == 2
    assert list(starts.values()) == [1] * lost
    assert sum("in place of a lost job" in event for event in events) == lost
    assert len(logged(folder, "stopped")) == 2 - (how == "kill -9")
    assert done(folder) == ["long1", "long2"]
    assert in_queue() == []


@pytest.mark.long
def test_on_slurm_stop_cancels_running_and_pending_jobs(folder, cluster):
    put(folder, *(f"long{i}" for i in range(6)))
    stopping, began = threading.Event(), []

    def stop_when_four_wait():
        if len(logged(folder, "waits")) == 4:
            began.append(time.monotonic())
            assert sum(row.endswith("PENDING") for row in in_queue()) == 2
            stopping.set()
        return False

    drive(
        folder,
        do_items,
        workers=6,
        settings=ON_SLURM,
        is_done=stop_when_four_wait,
        stop_event=stopping,
        storage=URL,
    )
    assert time.monotonic() - began[0] < 15
    assert len(logged(folder, "stopped")) == 4
    assert in_queue() == []
    assert files_with(folder, "open-sesame") == []


@pytest.mark.long
def test_on_slurm_refused_jobs_are_an_input_error(folder, cluster):
    with pytest.raises(InputError, match=r"sbatch refused the jobs: .*partition"):
        drive(folder, do_items, settings=SlurmSettings(gpus=0, partition="nowhere"))
