"""Workers as processes of this host: real processes that end in every way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lesionseg.errors import InputError
from search.errors import JobFailed
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers import pool
from search.workers.launchers import local
from search.workers.launchers.launcher import LaunchContext, RestartPolicy
from search.workers.launchers.local import LocalLauncher, worker_command
from search.workers.pool import make_worker_pool
from tests.fake_cuda import fake_cuda

SLOTS = (Slot("cpu", 1), Slot("cpu", 1))
SECRET = "hunter2"
QUICK = RestartPolicy(max_failures=3, first_pause_s=0.05)


@pytest.fixture
def location(tmp_path):
    return StudyLocation("s", tmp_path / "s", f"postgresql://u:{SECRET}@h/db", tmp_path / "data")


@pytest.fixture(autouse=True)
def _short_poll(monkeypatch):
    monkeypatch.setattr(LocalLauncher, "poll_s", 0.02)


def run(location, script: str, *, slots=SLOTS, stop_event=None, **callbacks) -> list[str]:
    """Run shell scripts as workers, with $MARKS as the study's folder; return the events."""
    events = callbacks.pop("events", [])
    context = LaunchContext(
        location,
        stop_event or threading.Event(),
        on_event=events.append,
        restart_policy=QUICK,
        **callbacks,
    )
    command = ["sh", "-c", f'MARKS="{location.folder}"; {script}']
    LocalLauncher(context, slots, lambda location, slot: command).run()
    return events


def test_ends_when_every_worker_exits_normally(location):
    assert run(location, 'echo here > "$MARKS/$$"; echo bye') == []
    assert len([p for p in location.folder.iterdir() if p.is_file()]) == 2
    logs = sorted((location.folder / "workers").iterdir())
    assert [path.read_text() for path in logs] == ["bye\n"] * 2


def test_dead_worker_is_restarted(location):
    script = 'if [ -e "$MARKS/second" ]; then exit 0; fi; touch "$MARKS/second"; kill -9 $$'
    events = run(location, script, slots=SLOTS[:1])
    assert events == ["worker 0 died (signal 9); restarts in 0.05 s"]


def test_worker_that_keeps_dying_is_given_up(location):
    events: list[str] = []
    with pytest.raises(JobFailed, match=r"every worker was given up; last line of one: no luck"):
        run(location, "echo no luck; exit 1", slots=SLOTS[:1], events=events)
    assert [event.rpartition("; ")[2] for event in events] == [
        "restarts in 0.05 s",
        "restarts in 0.1 s",
        "given up after 3 failures in a row",
    ]


def test_blocked_worker_is_not_restarted(location):
    events: list[str] = []
    with pytest.raises(JobFailed, match=r"every worker was given up; last line of one: no way"):
        run(location, "echo lesionsearch: no way; exit 3", slots=SLOTS[:1], events=events)
    assert events == ["worker 0 stopped: no way; it is not started again"]


def test_device_of_one_worker_may_go(location):
    """A worker fails and then finds no device: it is restarted later, and the others continue."""
    script = (
        'if mkdir "$MARKS/first" 2>/dev/null; then exit 1; fi; '
        'if mkdir "$MARKS/second" 2>/dev/null; then exit 2; fi'
    )
    events = run(location, script, slots=SLOTS[:1])
    assert [event.partition("; ")[0] for event in events] == [
        "worker 0 died (exit code 1)",
        "worker 0 died (exit code 2)",
    ]


def test_full_disk_without_room_for_logs_is_no_reason_to_train_nothing(location):
    (location.folder / "workers" / "0.log").mkdir(parents=True)  # cannot be opened as a file
    run(location, 'echo here > "$MARKS/$$"', slots=SLOTS[:1])
    assert len([path for path in location.folder.iterdir() if path.is_file()]) == 1


def test_input_error_of_a_worker_ends_all(location):
    script = (
        'if mkdir "$MARKS/first" 2>/dev/null; then '
        'echo "lesionsearch: data: not these images" >&2; exit 2; fi; exec sleep 60'
    )
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^data: not these images$"):
        run(location, script)
    assert time.monotonic() - start < 10
    assert not [p for p in psutil.Process().children() if p.name() == "sleep"]


@pytest.mark.parametrize(
    ("handler", "exited"), [('touch "$MARKS/left$$"; exit 0', 2), ("", 0)], ids=["exits", "ignores"]
)
def test_stop_terminates_workers_and_kills_those_that_do_not_exit(
    location, monkeypatch, handler, exited
):
    monkeypatch.setattr(local, "STOP_TIMEOUT_S", 10 if exited else 0.3)
    stop_event = threading.Event()
    ready = f"trap '{handler}' TERM; touch \"$MARKS/ready$$\"; while :; do sleep 0.05; done"

    def stop_when_ready():
        if len(list(location.folder.glob("ready*"))) == 2:
            stop_event.set()
        return False

    start = time.monotonic()
    assert run(location, ready, stop_event=stop_event, is_done=stop_when_ready) == []
    assert time.monotonic() - start < 10
    assert len(list(location.folder.glob("left*"))) == exited


def test_password_is_passed_in_the_environment(location):
    command = worker_command(location, Slot("cuda", 3, 0.5, 1.5))
    assert SECRET not in " ".join(command)
    assert command[1:6] == ["-P", "-m", "cli", "worker", "s"]
    assert command[6:] == [
        *("--out", str(location.folder), "--device", "cuda", "--threads", "3", "--share", "0.5"),
        *("--memory-gb", "1.500", "--data", str(location.data)),
    ]
    assert SECRET not in repr(location)
    run(location, 'printf %s "$LESIONSEARCH_STORAGE" > "$MARKS/url"', slots=SLOTS[:1])
    assert (location.folder / "url").read_text() == location.storage


def test_worker_command_names_every_data_set(location, tmp_path):
    roots = (tmp_path / "one", tmp_path / "two")
    command = worker_command(replace(location, data=roots), Slot("cpu", 1))
    assert command[-4:] == ["--data", str(roots[0]), "--data", str(roots[1])]
    assert "--data" not in worker_command(replace(location, data=None), Slot("cpu", 1))


def test_worker_sees_only_its_own_gpu(location, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    slots: list[Slot] = []

    def command(location, slot):
        slots.append(slot)
        return ["sh", "-c", f'printf %s "$CUDA_VISIBLE_DEVICES" > "{location.folder}/{len(slots)}"']

    context = LaunchContext(location, threading.Event())
    slots_of_host = [Slot("cuda:0", 2, 0.5), Slot("cuda:1", 2, 0.5)]
    LocalLauncher(context, slots_of_host, command).run()
    assert [slot.device for slot in slots] == ["cuda", "cuda"]
    assert [(location.folder / str(i)).read_text() for i in (1, 2)] == ["4", "7"]


# --- pools ---------------------------------------------------------------------------------------


def test_default_pool_is_this_process_alone():
    assert make_worker_pool(device="cpu").alone
    several = make_worker_pool(device="cpu", workers=2, threads=1)
    assert (several.alone, len(several.slots), several.engine) == (False, 2, "local")
    none = make_worker_pool(device="cpu", workers=0)
    assert (none.alone, none.slots) == (False, ())
    cluster = make_worker_pool(
        "slurm", workers=8, threads=4, settings=["partition=gpu", "time_minutes=9"]
    )
    assert (cluster.workers, cluster.slots[0].threads) == (8, 4)
    assert cluster.settings == {"partition": "gpu", "time_minutes": "9"}


def test_final_test_runs_on_a_slot_of_the_pool():
    """It takes no GPU that the user did not name."""
    with fake_cuda(count=4):
        assert [s.device for s in make_worker_pool(gpus="2,3", threads=2).final_slots] == [
            "cuda:2",
            "cuda:3",
        ]
        assert len(make_worker_pool(device="cpu", workers=2).final_slots) == 2
        assert len(make_worker_pool(device="cpu", workers=0).final_slots) == 1
        assert [s.device for s in make_worker_pool("slurm", device="cpu").final_slots] == ["cpu"]
        shared = make_worker_pool(device="cuda", workers_per_gpu=2)
        assert shared.final_slots == shared.slots and shared.slots[0].share == 0.5


def test_threads_of_a_cluster_are_the_cpus_of_a_worker(monkeypatch):
    assert make_worker_pool("slurm").slots[0].threads == 4
    assert make_worker_pool("slurm", settings=["cpus=12"]).slots[0].threads == 12
    assert make_worker_pool("slurm", settings=["cpus=12"], threads=3).slots[0].threads == 3
    for cores, threads in ((64, 4), (2, 2)):
        monkeypatch.setattr(pool, "count_cores", lambda cores=cores: cores)
        assert make_worker_pool("ray").slots[0].threads == threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "slurm", "workers_per_gpu": 2}, "a SLURM job does not share its GPUs"),
        ({"engine": "slurm", "settings": ["cpus=0"]}, "slurm: cpus: "),
        ({"engine": "kubernetes"}, "--engine: unknown engine 'kubernetes'"),
        ({"engine": "rey"}, "ray"),
        ({"settings": ["a=b"]}, "the engine local has no settings"),
        ({"engine": "ray", "settings": ["address"]}, "must be KEY=VALUE"),
        ({"engine": "ray", "gpus": "0"}, "use --workers"),
        ({"gpus": "0", "workers": 2}, "give one"),
        ({"gpus": "zero"}, "must be numbers such as 0,1, got 'zero'"),
        ({"gpus": "0,0"}, "must name each GPU once"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    engine = options.pop("engine", "local")
    with pytest.raises(InputError) as caught:
        make_worker_pool(engine, **options)
    assert message in str(caught.value)


def test_every_engine_has_a_module():
    folder = Path(local.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in pool.ENGINES)
