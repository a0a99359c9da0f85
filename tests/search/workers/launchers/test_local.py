"""Workers as processes of this host: real ones, that end in every way."""

from __future__ import annotations

import os
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
from search.workers import pool as crews
from search.workers.launchers import local
from search.workers.launchers.local import run_locally, worker_command
from search.workers.pool import make_worker_pool

SLOTS = (Slot("cpu", 1), Slot("cpu", 1))
SECRET = "hunter2"


@pytest.fixture
def join(tmp_path):
    return StudyLocation("s", tmp_path / "s", f"postgresql://u:{SECRET}@h/db", tmp_path / "data")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(local, "TICK", 0.02)


def shell(script: str):
    """A worker that is a few lines of shell; $MARKS is a folder where it may leave marks."""
    return lambda join, slot: ["sh", "-c", f'MARKS="{join.folder}"; {script}']


def run(join, script: str, *, stopping=None, progress=lambda: 0, slots=SLOTS):
    events: list[str] = []
    run_locally(
        join,
        slots,
        stopping=stopping or threading.Event(),
        progress=progress,
        on_event=events.append,
        command=shell(script),
    )
    return events


def test_it_ends_when_every_worker_has_said_that_it_is_done(join):
    assert run(join, 'echo here > "$MARKS/$$"; echo bye') == []
    assert len([p for p in join.folder.iterdir() if p.is_file()]) == 2
    assert [p.read_text() for p in sorted((join.folder / "workers").iterdir())] == ["bye\n"] * 2


def test_a_worker_that_dies_is_replaced_after_a_pause(join):
    began = time.monotonic()
    script = 'if [ -e "$MARKS/second" ]; then exit 0; fi; touch "$MARKS/second"; kill -9 $$'
    events = run(join, script, slots=SLOTS[:1])
    assert events == ["worker 0 died (signal 9); another starts in 1 s"]
    assert time.monotonic() - began >= 1


def test_pauses_double_and_a_hopeless_slot_is_given_up(join, monkeypatch):
    monkeypatch.setattr(local, "DEATHS", 4)
    clock = iter(range(0, 100_000, 50))
    monkeypatch.setattr(local.time, "monotonic", lambda: next(clock))
    with pytest.raises(JobFailed, match=r"again and again; the last words of one: no luck"):
        run(join, "echo no luck; exit 1", slots=SLOTS[:1])
    events: list[str] = []
    with pytest.raises(JobFailed):
        run_locally(
            join,
            SLOTS[:1],
            stopping=threading.Event(),
            progress=lambda: 0,
            on_event=events.append,
            command=shell("exit 1"),
        )
    pauses = [e.rpartition(" in ")[2] for e in events[:-1]]
    assert pauses == ["1 s", "2 s", "4 s"]
    assert events[-1] == "worker 0 died 4 times in a row and is given up"


def test_deaths_are_forgiven_while_trials_end(join, monkeypatch):
    monkeypatch.setattr(local, "DEATHS", 2)
    script = 'n=$(ls "$MARKS" | grep -c mark); touch "$MARKS/mark$n"; [ $n -ge 3 ]'
    events = run(
        join,
        script,
        slots=SLOTS[:1],
        progress=lambda: len(list(join.folder.glob("mark*"))),
    )
    assert [e.rpartition(" in ")[2] for e in events] == ["1 s"] * 3


def test_a_worker_that_refuses_its_task_ends_all_in_its_own_words(join):
    script = (
        'if mkdir "$MARKS/first" 2>/dev/null; then '
        'echo "lesionsearch: data: not these images" >&2; exit 2; fi; exec sleep 60'
    )
    began = time.monotonic()
    with pytest.raises(InputError, match=r"^data: not these images$"):
        run(join, script)
    assert time.monotonic() - began < 10
    assert not [p for p in psutil.Process().children() if p.name() == "sleep"]


def test_when_it_is_stopped_workers_are_asked_to_leave(join):
    stopping = threading.Event()
    timer = threading.Timer(0.5, stopping.set)
    timer.start()
    script = "trap 'touch \"$MARKS/left$$\"; exit 0' TERM; while :; do sleep 0.05; done"
    assert run(join, script, stopping=stopping) == []
    assert len(list(join.folder.glob("left*"))) == 2


def test_one_that_does_not_leave_is_ended(join, monkeypatch):
    monkeypatch.setattr(local, "LEAVE_WITHIN", 0.3)
    stopping = threading.Event()
    threading.Timer(0.5, stopping.set).start()
    began = time.monotonic()
    run(join, "trap '' TERM; while :; do sleep 0.05; done", stopping=stopping)
    assert time.monotonic() - began < 10


def test_the_password_goes_by_the_environment_and_not_by_the_command(join):
    command = worker_command(join, Slot("cuda", 3, 0.5, 1.5))
    assert SECRET not in " ".join(command)
    assert command[1:6] == ["-P", "-m", "cli", "worker", "s"]
    assert command[6:] == [
        *("--out", str(join.folder), "--device", "cuda", "--threads", "3", "--share", "0.5"),
        *("--memory-gb", "1.500", "--data", str(join.data)),
    ]
    assert SECRET not in repr(join)
    run(join, 'printf %s "$LESIONSEARCH_STORAGE" > "$MARKS/url"', slots=SLOTS[:1])
    assert (join.folder / "url").read_text() == join.storage


def test_a_worker_is_told_of_every_data_set(join, tmp_path):
    sets = (tmp_path / "one", tmp_path / "two")
    command = worker_command(replace(join, data=sets), Slot("cpu", 1))
    assert command[-4:] == ["--data", str(sets[0]), "--data", str(sets[1])]
    assert "--data" not in worker_command(replace(join, data=None), Slot("cpu", 1))


def test_a_worker_sees_its_own_gpu_alone(join, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    seen: list[Slot] = []

    def command(join, slot):
        seen.append(slot)
        return ["sh", "-c", f'printf %s "$CUDA_VISIBLE_DEVICES" > "{join.folder}/{len(seen)}"']

    slots = [Slot("cuda:0", 2, 0.5), Slot("cuda:1", 2, 0.5)]
    run_locally(join, slots, stopping=threading.Event(), progress=lambda: 0, command=command)
    assert [s.device for s in seen] == ["cuda", "cuda"]
    assert [(join.folder / str(i)).read_text() for i in (1, 2)] == ["4", "7"]


# --- what the command line asks for --------------------------------------------------------------


def test_a_crew_is_this_process_alone_unless_more_is_said():
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "kubernetes"}, "--engine: unknown engine 'kubernetes'"),
        ({"engine": "rey"}, "ray"),
        ({"settings": ["a=b"]}, "the engine local has no settings"),
        ({"engine": "ray", "settings": ["address"]}, "must be KEY=VALUE"),
        ({"engine": "ray", "gpus": "0"}, "say --workers"),
        ({"gpus": "0", "workers": 2}, "give one"),
        ({"gpus": "zero"}, "must be numbers such as 0,1, got 'zero'"),
        ({"gpus": "0,0"}, "must name each GPU once"),
    ],
)
def test_a_crew_that_cannot_be_is_refused(options, message):
    engine = options.pop("engine", "local")
    with pytest.raises(InputError) as caught:
        make_worker_pool(engine, **options)
    assert message in str(caught.value)


def test_every_engine_is_known_by_its_name():
    assert set(crews.ENGINES) == {"local", "ray", "slurm"}
    folder = Path(local.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in crews.ENGINES)
    assert os.access(folder, os.R_OK)
