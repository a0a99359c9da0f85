"""A process that has imported everything and forks workers from itself.

A dead worker is so replaced in milliseconds. Who signals is the worker_processes too: it alone knows that
a process of that number is still its worker. Trainings are ``tests.search.stub_training``'s.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from tests.search import stub_training

ROOT = Path(__file__).resolve().parents[2]
#: Marks every process that comes of a worker_processes, however it was started.
MARK = "LESIONSEARCH_CHAOS"


class WorkerProcesses:
    """Forks workers, while it is entered."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))

    def __enter__(self) -> WorkerProcesses:
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT)}
        # What a killed process leaves in its temporary folder goes with this one.
        environment |= {"TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.search.worker_processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends whoever is left
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, join: StudyLocation, log: Path, environment: dict[str, str]) -> int:
        """Another worker's process number; it works with the stub_training."""
        where = {"name": join.name, "folder": str(join.folder), "storage": join.storage}
        pid: int = self._ask("start", join=where, log=str(log), environment=environment)
        return pid

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Whether there was such a worker to be given the signal."""
        given: bool = self._ask("signal", pid=pid, number=int(number))
        return given

    def ended(self) -> dict[int, int]:
        """Workers that have ended since this was last asked, and their exit codes."""
        return {int(pid): code for pid, code in self._ask("ended").items()}

    def others(self) -> list[psutil.Process]:
        """Whatever comes of the worker_processes and lives, itself left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != self._process.pid and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def _ask(self, what: str, **given: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"what": what, **given}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


# --- the worker_processes's own process -------------------------------------------------------------------


def _nurse() -> None:
    _warm_up()
    children: set[int] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["what"]:
            case "start":
                pid = _forked(asked)
                children.add(pid)
                answer: Any = pid
            case "signal":
                answer = asked["pid"] in children
                if answer:
                    os.kill(asked["pid"], asked["number"])
            case "ended":
                answer = dict(_reaped(children))
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # it has nothing to put away


def _warm_up() -> None:
    """Has a study once, so that no worker needs to do again what is done once a process."""
    import optuna

    import search.workers.loop  # noqa: F401
    from search.storage.database import open_storage, sqlite_url
    from search.storage.leases import TrialLeases

    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(sqlite_url(Path(folder)))
        study = optuna.create_study(storage=storage)
        TrialLeases(study).reap_expired()
        study.tell(study.ask(), 0.0)
        storage.engine.dispose()


def _reaped(children: set[int]) -> Iterator[tuple[int, int]]:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.remove(pid)
            yield pid, os.waitstatus_to_exitcode(status)


def _forked(asked: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _work(asked)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)


def _work(asked: dict[str, Any]) -> int:
    from search.workers.loop import WorkerOptions, serve

    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for each in (1, 2):
        os.dup2(log, each)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(asked["environment"])
    where = asked["join"]
    join = StudyLocation(where["name"], Path(where["folder"]), where["storage"])
    terms = WorkerOptions(program=stub_training.__name__)
    me = os.getpid()
    told = serve(
        join,
        Slot("cpu", 1),
        threading.Event(),
        terms,
        on_event=lambda text: print(me, text, flush=True),
    )
    print(me, told, flush=True)
    return 0


if __name__ == "__main__":
    _nurse()
