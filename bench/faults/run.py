"""Run one study under a schedule of faults."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
from PIL import Image

from bench.faults import audit
from bench.faults.checks import Evidence, Verdict, check
from bench.faults.kinds import KINDS, NoTarget, Storage, Undo
from bench.faults.proxy import NetworkProxy
from bench.faults.schedule import Fault, Schedule, Shape
from lesionseg.data.cache import Cache
from search.spec.loading import parse_spec
from search.spec.study_spec import StudySpec
from search.storage.lease_types import GRACE_VARIABLE
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from tests.postgres import PrivatePostgres, binaries
from tests.search import stub_training
from tests.search.worker_processes import WorkerProcesses

#: Share of the configurations whose training fails without a fault.
FAILING_SHARE = 0.15
#: Seconds that workers have to finish the study when all faults are over, without its trainings.
FINISH_S = 45.0
#: Seconds within which processes must end after their parent.
ORPHAN_S = 10.0
#: Bytes of the disk that can be filled.
DISK = 8 * 2**20
#: Settings of the database, as administrators set them: a lock that is held longer is an error.
TIMEOUTS = ("lock_timeout = '500ms'", "statement_timeout = '3s'")
_LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


class Site:
    """Resources of all runs: processes that fork workers, and a PostgreSQL server."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.folder.chmod(0o755)  # for the server's user
        self.clock = self.folder / "clock"
        self.library = next((p for x in _LIBRARIES for p in Path("/").glob(x[1:])), None)
        self._open = contextlib.ExitStack()
        self._processes: dict[bool, WorkerProcesses] = {}
        self._postgres: PrivatePostgres | None = None

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._open.close()
        if self._postgres is not None:
            self._postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self, *, has_own_clock: bool) -> WorkerProcesses:
        """Return the process that forks workers, with or without the clock of ``set_clock``.

        libfaketime adds seconds of processor time to each worker: runs without it are faster.
        """
        if has_own_clock not in self._processes:
            environment = {
                "LD_PRELOAD": str(self.library),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
            self.set_clock(0)
            found = WorkerProcesses(environment if has_own_clock else {})
            self._processes[has_own_clock] = self._open.enter_context(found)
            found.ended()  # waits until everything is imported
        return self._processes[has_own_clock]

    @property
    def postgres(self) -> PrivatePostgres:
        """A running server; RuntimeError where none is installed."""
        if self._postgres is None:
            found = binaries()
            if found is None:
                raise RuntimeError("no initdb on this machine: install PostgreSQL's server")
            folder = self.folder / "postgres"
            folder.mkdir()
            self._postgres = PrivatePostgres(folder, found)
            self._postgres.start()
            self._postgres.run(f"CREATE ROLE {Run.role} LOGIN")
        return self._postgres

    def set_clock(self, offset_s: float) -> None:
        """Set the difference of the workers' wall clock from the true one."""
        partial = self.clock.with_suffix(".partial")
        partial.write_text(f"{offset_s:+.0f}\n")
        partial.replace(self.clock)

    def lacking(self) -> dict[str, str]:
        """Return the kinds of faults that cannot be injected on this host, with the reason."""
        lacking = {}
        if self.library is None:
            lacking["clock stepped"] = "libfaketime is not installed (package faketime)"
        if not _can_mount():
            lacking["disk full"] = "a tmpfs cannot be mounted (needs root)"
        return lacking


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if not _mount(Path(folder)):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def _mount(folder: Path) -> bool:
    """Mount a small disk in memory; return whether that was possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


@dataclass
class Outcome:
    """The result of a run. applied: number of faults by kind that found a target."""

    schedule: Schedule
    verdict: Verdict
    applied: Counter[str]
    seconds: float
    logs: str = ""

    @property
    def violations(self) -> list[str]:
        return self.verdict.violations


@dataclass
class _WorkerProcess:
    """signals: those that were sent to it."""

    log: Path
    signals: set[int] = field(default_factory=set)


class Run:
    """One run of a study with its workers and faults.

    folder: of everything. location: of the study. caches: the parent of its cache. database, role:
    names in PostgreSQL. killed_trainings: process ids. next_console: of the next worker.
    """

    role = "searcher"

    def __init__(self, site: Site, schedule: Schedule, setup: str | None = None) -> None:
        self.site, self.schedule, self.setup = site, schedule, setup
        self.has_own_clock = any(fault.kind == "clock stepped" for fault in schedule.faults)
        self.processes = site.processes(has_own_clock=self.has_own_clock)
        self.shape = schedule.shape
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=site.folder))
        self.caches, self.truth = self.folder / "cache", self.folder / "truth.log"
        self.violations: list[str] = []
        self.applied: Counter[str] = Counter()
        self.killed_trainings: set[int] = set()
        self.next_console: str | None = None
        self.workers: dict[int, _WorkerProcess] = {}
        self.logs: list[Path] = []
        self.missing = self.shape.workers  # workers to be started
        self.offset_s = 0.0
        self.active: list[tuple[float, Fault, Undo]] = []
        self.is_small_disk = False
        self.postgres: PrivatePostgres | None = None
        self.proxy: NetworkProxy | None = None
        self.database = f"faults_{os.urandom(4).hex()}"

    def execute(self) -> Outcome:
        """Run the study to its end and check it."""
        began = time.monotonic()
        try:
            evidence = self._create()
            self._work()
            self._finish()
            evidence.log = stub_training.read_log(self.folder, self.truth)
            evidence.killed = self.killed_trainings
            evidence.losses = sum(n for kind, n in self.applied.items() if KINDS[kind].loses)
            with self._cache_folder():
                verdict = check(evidence)
            verdict.violations += self.violations
            logs = ""
            if verdict.violations:
                logs = "\n".join(f"--- {p.name}\n{p.read_text()}" for p in self.logs)
            seconds = time.monotonic() - began
            return Outcome(self.schedule, verdict, self.applied, seconds, logs)
        finally:
            self._clean_up()

    # --- what the faults use ---------------------------------------------------------------------

    def pick_worker(self, rng: random.Random, *, is_ready: bool = False) -> int:
        """Return the process id of a random worker. is_ready: of those that handle signals."""
        found = [p for p, w in self.workers.items() if not is_ready or "joins" in w.log.read_text()]
        found = [pid for pid in found if not self.workers[pid].signals - {signal.SIGCONT}]
        if not found:
            raise NoTarget
        return rng.choice(sorted(found))

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a worker, if it is still there."""
        if worker := self.workers.get(pid):
            worker.signals |= {number}
            if number == signal.SIGCONT:
                worker.signals.discard(signal.SIGSTOP)
            self.processes.signal(pid, number)

    def fork_servers(self, worker: int) -> list[psutil.Process]:
        """Return a worker's fork server, if it runs."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(worker).children()
            return [p for p in children if "multiprocessing.forkserver" in " ".join(p.cmdline())]
        return []

    def trainings(self, worker: int) -> list[psutil.Process]:
        """Return a worker's training processes."""
        with contextlib.suppress(psutil.Error):
            return [child for server in self.fork_servers(worker) for child in server.children()]
        return []

    def step_clock(self, seconds: float) -> None:
        """Move the workers' wall clock."""
        self.offset_s += seconds
        self.site.set_clock(self.offset_s)

    # --- the study -------------------------------------------------------------------------------

    def _create(self) -> Evidence:
        folder, storage = self.folder / "study", None
        if any(fault.kind == "disk full" for fault in self.schedule.faults):
            folder = self.folder / "disk" / "study"
            folder.parent.mkdir()
            self.is_small_disk = _mount(folder.parent)
        admin_url = None
        if self.schedule.storage == Storage.POSTGRESQL:
            self.postgres = self.site.postgres
            self.proxy = NetworkProxy(self.postgres.port)
            self.postgres.run(f"CREATE DATABASE {self.database} OWNER {self.role}")
            for setting in TIMEOUTS:
                self.postgres.run(f"ALTER DATABASE {self.database} SET {setting}")
            admin_url = self.postgres.url(self.database)
            storage = self.postgres.url(self.database, self.proxy.port)
            storage = storage.replace("postgres@", f"{self.role}@")
        with self._cache_folder():
            opened = create_or_resume(
                stub_spec(self.shape), write_pairs(self.folder / "data"), folder, storage
            )
        self.location = StudyLocation("s", folder, storage)
        self.environment = {
            GRACE_VARIABLE: str(self.shape.grace_s),
            "LESIONSEARCH_CACHE": str(self.caches),
            stub_training.SECONDS: self.shape.epoch_s,
            stub_training.LOG_PATH: str(self.truth),
            stub_training.FAILING_SHARE: str(FAILING_SHARE),
            stub_training.EXPECTED_DATA: stub_training.data_digest(Cache(opened.cache.path)),
        }
        evidence = Evidence(
            folder, admin_url, self.shape.trials, self.shape.epochs, failing_share=FAILING_SHARE
        )
        audit.install(evidence.database)
        return evidence

    @contextlib.contextmanager
    def _cache_folder(self) -> Iterator[None]:
        """Let this process use the study's caches."""
        previous = os.environ.get("LESIONSEARCH_CACHE")
        os.environ["LESIONSEARCH_CACHE"] = str(self.caches)
        try:
            yield
        finally:
            os.environ.pop("LESIONSEARCH_CACHE")
            if previous is not None:
                os.environ["LESIONSEARCH_CACHE"] = previous

    def _start_worker(self) -> None:
        log = self.folder / f"worker-{len(self.logs)}.log"
        log.touch()
        console, self.next_console = self.next_console, None
        pid = self.processes.start(
            self.location, log, self.environment, console=console, setup=self.setup
        )
        self.logs.append(log)
        self.workers[pid] = _WorkerProcess(log)
        self.missing -= 1

    def _work(self) -> None:
        """Run workers, and the faults at their times, until every worker has ended by itself."""
        due, first_epoch = list(self.schedule.faults), None
        deadline = time.monotonic() + self.shape.window_s + self._finish_s()
        while True:
            now = time.monotonic()
            self._reap()
            self._end_faults(now)
            while self.missing and not any(KINDS[f.kind].ends_workers for _, f, _ in self.active):
                self._start_worker()
            if not self.workers and not self.missing:
                break
            if first_epoch is None and self._has_epoch():
                first_epoch = now
            if first_epoch is not None:
                due = [fault for fault in due if not self._begin(fault, now, first_epoch)]
            if due or self.active:
                deadline = max(deadline, now + self._finish_s())
            if now > min(deadline, (first_epoch or now) + 10 * self.shape.window_s + FINISH_S):
                self.violations.append(f"the workers {sorted(self.workers)} do not end")
                break
            time.sleep(0.02)

    def _finish_s(self) -> float:
        return FINISH_S + 2 * self.shape.window_s

    def _has_epoch(self) -> bool:
        return self.truth.exists() and f" {stub_training.EPOCH} " in self.truth.read_text()

    def _begin(self, fault: Fault, now: float, first_epoch: float) -> bool:
        """Begin a fault that is due; return whether it began."""
        if now < first_epoch + fault.at_s or not self.workers:
            return False
        kind = KINDS[fault.kind]
        try:
            undo = kind.begin(self, random.Random(fault.seed))
        except NoTarget:
            return False
        self.applied[fault.kind] += 1
        if undo is not None:
            self.active.append((time.monotonic() + fault.seconds, fault, undo))
        return True

    def _end_faults(self, now: float) -> None:
        """End the faults whose time is over."""
        for entry in [entry for entry in self.active if entry[0] <= now]:
            with contextlib.suppress(NoTarget):
                entry[2]()
                self.active.remove(entry)

    def _reap(self) -> None:
        for pid, code in self.processes.ended().items():
            worker = self.workers.pop(pid, None)
            if worker is None:
                continue
            problem = self._find_problem(worker, code)
            if problem:
                self.violations.append(f"{worker.log.name}: {problem}")
            if code != 0 or worker.signals & {signal.SIGTERM, signal.SIGHUP}:
                self.missing += len(self.violations) < 10

    def _find_problem(self, worker: _WorkerProcess, code: int) -> str | None:
        """Return the problem of how a worker ended; None if there is none."""
        lines = worker.log.read_text(errors="replace").splitlines()
        if "Traceback (most recent call last):" in lines:
            return f"a traceback, which ends in {lines[-1]!r}"
        if (code == -signal.SIGKILL and signal.SIGKILL in worker.signals) or code == 0:
            return None
        may_end = any(KINDS[kind].ends_workers for kind in self.applied)
        if code == 1 and may_end and lines and lines[-1].startswith("lesionsearch: "):
            return None
        return f"exit code {code}: {lines[-1] if lines else 'no output'!r}"

    def _finish(self) -> None:
        """End all faults, and let one more worker finish what is left."""
        until = time.monotonic() + FINISH_S
        while self.active and time.monotonic() < until:
            self._end_faults(float("inf"))
        for pid in self.workers:  # of a run that hung
            self.send(pid, signal.SIGKILL)
        while self.workers and time.monotonic() < until:
            self._reap()
            time.sleep(0.01)
        self._start_worker()
        (last,) = self.workers.values()
        while self.workers and time.monotonic() < until:
            self._reap()
            time.sleep(0.01)
        lines = last.log.read_text().splitlines()
        if self.workers or not lines or "the study is done" not in lines[-1]:
            self.violations.append(f"a last worker does not end: {lines[-1:]}")
        self._kill_rest()

    def _kill_rest(self) -> None:
        """Kill the remaining processes; orphaned processes are a violation."""
        for pid in self.workers:
            self.processes.signal(pid, signal.SIGKILL)
        until = time.monotonic() + ORPHAN_S
        while (orphans := self.processes.descendants()) and time.monotonic() < until:
            self.processes.ended()
            time.sleep(0.02)
        for orphan in orphans:
            self.violations.append(f"a process outlived its parent: {orphan}")
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()

    def _clean_up(self) -> None:
        for _, _, undo in self.active:
            with contextlib.suppress(Exception):
                undo()
        for pid in self.workers:
            self.processes.signal(pid, signal.SIGKILL)
        self.site.set_clock(0)
        if self.proxy:
            self.proxy.close()
        if self.postgres:
            self.postgres.run(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
        if self.is_small_disk:
            subprocess.run(["umount", "--lazy", self.folder / "disk"], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def run_schedule(site: Site, schedule: Schedule, setup: str | None = None) -> Outcome:
    """Run one study. setup: MODULE:FUNCTION that each worker calls first."""
    return Run(site, schedule, setup).execute()


def stub_spec(shape: Shape) -> StudySpec:
    """Return the spec of a study with an infinite search space."""
    return parse_spec(
        {
            "name": "s",
            "data": {"image_size": 16},
            "budget": {"trials": shape.trials, "epochs": shape.epochs},
            "sampler": {"name": "random"},
            "pruner": {"name": "median", "min_epochs": 3, "startup": 5},
            "search": {
                "model": {"unet": {"width": [4, 8], "depth": 1}},
                "loss": ["bce", "dice"],
                "augment": "none",
                "optimizer": {"adam": {"lr": [0.001, 0.1]}},
                "schedule": "constant",
            },
        },
        "s",
    )


def write_pairs(folder: Path, n: int = 12) -> Path:
    """Write different images of 16 pixels with a square lesion."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        mask = np.zeros((16, 16), np.uint8)
        mask[4 : 8 + i % 4, 4:12] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        grain = np.random.default_rng(i).integers(0, 200, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(grain + (255 - mask[..., None]) // 5).save(folder / "images" / f"{i}.png")
    return folder
