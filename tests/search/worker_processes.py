"""Real worker processes, forked from a process that has imported everything.

A worker is therefore replaced in milliseconds. The forking process also sends the signals: it alone
can tell that a process id still belongs to its worker. A worker runs the real command; trainings
are those of ``tests.search.stub_training``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from search.study.location import StudyLocation
from tests.search import stub_training

ROOT = Path(__file__).resolve().parents[2]
#: Environment variable that identifies all descendants.
MARK = "LESIONSEARCH_CHAOS"


class WorkerProcesses:
    """Starts and signals workers; a context manager. environment: of all of them."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.mark, self.environment = uuid.uuid4().hex, dict(environment or {})
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))

    def __enter__(self) -> WorkerProcesses:
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT)}
        # Temporary files of killed processes are deleted with this folder.
        environment |= {"TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1", **self.environment}
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
        self._process.stdin.close()  # it kills the remaining workers
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(
        self,
        location: StudyLocation,
        log: Path,
        environment: Mapping[str, str],
        *,
        console: str | None = None,
        setup: str | None = None,
    ) -> int:
        """Start a worker; return its process id.

        console: a file for the standard output, if it is not the log. setup: MODULE:FUNCTION that
        the worker calls first.
        """
        args = ["worker", location.name, "--out", str(location.folder)]
        # Three consecutive trainings may be killed at random.
        args += ["--device", "cpu", "--threads", "1", "--keep-going"]
        args += ["--storage", location.storage] if location.storage else []
        pid: int = self._call(
            "start", args=args, log=str(log), environment=dict(environment),
            console=console, setup=setup,
        )  # fmt: skip
        return pid

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal; return whether the worker existed."""
        existed: bool = self._call("signal", pid=pid, number=int(number))
        return existed

    def ended(self) -> dict[int, int]:
        """Return the exit codes of workers that ended since the previous call."""
        return {int(pid): code for pid, code in self._call("ended").items()}

    def descendants(self) -> list[psutil.Process]:
        """Return all running descendants of the forking process."""
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != self._process.pid and process.environ().get(MARK) == self.mark:
                    processes.append(process)
        return processes

    def _call(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


# --- the forking process -----------------------------------------------------------------------


def _main() -> None:
    _warm_up()
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        match request["command"]:
            case "start":
                pid = _fork(request)
                children.add(pid)
                answer: Any = pid
            case "signal":
                answer = request["pid"] in children
                if answer:
                    os.kill(request["pid"], request["number"])
            case "ended":
                answer = dict(_reaped(children))
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # without cleanup


def _warm_up() -> None:
    """Open a study once, so that workers skip what is done once per process."""
    import optuna

    import cli  # noqa: F401
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


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _work(request)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)


def _work(request: dict[str, Any]) -> None:
    import cli
    from search.workers import loop

    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    os.dup2(os.open(request["log"], flags, 0o644), 2)
    os.dup2(os.open(request["console"] or request["log"], flags, 0o644), 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    if "faketime" in os.environ.get("LD_PRELOAD", ""):
        # libfaketime 0.9.10 refuses absolute times of the monotonic clock, which Python uses.
        time.sleep = lambda seconds: threading.Event().wait(seconds) and None
    loop.WorkerOptions = partial(loop.WorkerOptions, program=stub_training.__name__)
    if request["setup"]:
        module, function = request["setup"].split(":")
        getattr(importlib.import_module(module), function)()
    cli.app(request["args"])


if __name__ == "__main__":
    _main()
