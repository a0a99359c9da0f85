"""Kills, freezes and disconnects workers at random while they work on a study."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from search.spec.loading import parse_spec
from search.spec.study_spec import StudySpec
from search.storage.lease_types import GRACE_VARIABLE
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from tests.search import stub_training
from tests.search.chaos_checks import BudgetSample, Verdict, check_study, sample_budget
from tests.search.worker_processes import WorkerProcesses

#: Seconds within which processes end whose parent has ended.
EXIT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What is done to a study, at random times spread over its trials.

    grace: seconds without a heartbeat after which a worker counts as dead. freezes: number of
    workers that are stopped for 1.5 times as long. seconds: the shortest and the longest epoch.
    timeout_s: seconds after which the run counts as hung.
    """

    workers: int
    trials: int
    kill_workers: int
    kill_children: int
    kill_servers: int
    restarts: int = 0
    freezes: int = 0
    epochs: int = 6
    grace: float = 60.0
    seconds: str = "0.005 0.05"
    timeout_s: float = 280.0
    seed: int = 0

    def actions(self, rng: random.Random) -> list[tuple[float, str]]:
        """Return (number of finished trials, action) in order."""
        kinds = {"worker": self.kill_workers, "child": self.kill_children}
        kinds |= {"server": self.kill_servers, "freeze": self.freezes}
        last = 0.93 * self.trials
        actions = [(rng.uniform(0, last), kind) for kind, n in kinds.items() for _ in range(n)]
        even = [(i + 1) / (self.restarts + 1) for i in range(self.restarts)]
        return sorted(actions + [(self.trials * part, "restart") for part in even])


#: The plan of the benchmark.
FULL = Plan(
    8, 200, kill_workers=28, kill_children=16, kill_servers=4, freezes=3, grace=20.0, timeout_s=900
)


@dataclass
class ChaosResult:
    """What was done and observed.

    done: number of actions by kind. died: exit codes of workers that were not killed. peak: the
    largest number of trials that counted against the budget. orphans: processes that were left.
    """

    done: Counter[str] = field(default_factory=Counter)
    died: list[int] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0
    orphans: list[str] = field(default_factory=list)


def stub_spec(plan: Plan, name: str) -> StudySpec:
    """Return the spec of a study with an infinite search space."""
    return parse_spec(
        {
            "name": name,
            "data": {"image_size": 16},
            "budget": {"trials": plan.trials, "epochs": plan.epochs},
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
        name,
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


def survive(
    worker_processes: WorkerProcesses,
    folder: Path,
    plan: Plan,
    storage: str | None = None,
    restart: Callable[[], None] = lambda: None,
) -> tuple[ChaosResult, Verdict]:
    """Create a study, disturb it and check it. restart: restarts the database."""
    data = write_pairs(folder / "data")
    create_or_resume(stub_spec(plan, "s"), data, folder / "s", storage)
    location = StudyLocation("s", folder / "s", storage)
    result = disturb(worker_processes, location, plan, restart)
    return result, check_study(location, plan.trials, plan.epochs)


def disturb(
    worker_processes: WorkerProcesses,
    location: StudyLocation,
    plan: Plan,
    restart: Callable[[], None] = lambda: None,
) -> ChaosResult:
    """Run workers under a plan until every one has ended by itself."""
    return _Chaos(worker_processes, location, plan, restart).run()


class _Chaos:
    def __init__(
        self,
        worker_processes: WorkerProcesses,
        location: StudyLocation,
        plan: Plan,
        restart: Callable[[], None],
    ) -> None:
        self.worker_processes, self.location = worker_processes, location
        self.plan, self.restart = plan, restart
        self.rng, self.result = random.Random(plan.seed), ChaosResult()
        self.actions = plan.actions(self.rng)
        self.alive: set[int] = set()
        self.killed: set[int] = set()
        self.frozen: dict[int, float] = {}

    def run(self) -> ChaosResult:
        self.worker_processes.ended()  # waits until everything is imported
        began = time.monotonic()
        with sampling(self.location) as latest:
            for _ in range(self.plan.workers):
                self._start()
            while self.alive:
                assert time.monotonic() - began < self.plan.timeout_s, self._describe(latest())
                self._replace_dead()
                self._thaw()
                self._act(latest().ended)
                time.sleep(self.rng.uniform(0, 0.05))
            self.result.peak = self._final_sample(latest).peak
        self.result.seconds = time.monotonic() - began
        self.result.orphans = self._orphans()
        return self.result

    def _start(self) -> None:
        environment = {
            GRACE_VARIABLE: str(self.plan.grace),
            stub_training.SECONDS: self.plan.seconds,
        }
        log = self.location.folder / "workers.log"
        self.alive.add(self.worker_processes.start(self.location, log, environment))

    def _replace_dead(self) -> None:
        for pid, code in self.worker_processes.ended().items():
            self.alive.remove(pid)
            self.frozen.pop(pid, None)
            if code == 0:
                continue
            if pid not in self.killed:
                self.result.died.append(code)
            self._start()

    def _thaw(self) -> None:
        for pid, until in list(self.frozen.items()):
            if time.monotonic() > until:
                self.worker_processes.signal(pid, signal.SIGCONT)
                del self.frozen[pid]

    def _act(self, ended: int) -> None:
        """Perform the next action that is due; repeat it later if it had no target."""
        if self.actions and self.actions[0][0] <= ended and self._perform(self.actions[0][1]):
            self.result.done[self.actions.pop(0)[1]] += 1

    def _perform(self, kind: str) -> bool:
        if kind == "restart":
            self.restart()
            return True
        pid = self.rng.choice(sorted(self.alive))
        if kind == "worker":
            self.killed.add(pid)
            return self.worker_processes.signal(pid, signal.SIGKILL)
        if kind == "freeze":
            self.frozen[pid] = time.monotonic() + 1.5 * self.plan.grace
            return self.worker_processes.signal(pid, signal.SIGSTOP)
        return _kill_one(_servers(pid) if kind == "server" else _trainings(pid), self.rng)

    def _final_sample(self, latest: Callable[[], BudgetSample]) -> BudgetSample:
        """Return a sample that was taken after all workers had ended."""
        count, until = latest().count + 2, time.monotonic() + EXIT_TIMEOUT_S
        while latest().count < count and time.monotonic() < until:
            time.sleep(0.01)
        return latest()

    def _orphans(self) -> list[str]:
        until = time.monotonic() + EXIT_TIMEOUT_S
        while (processes := self.worker_processes.descendants()) and time.monotonic() < until:
            time.sleep(0.05)
        return [str(process) for process in processes]

    def _describe(self, sample: BudgetSample) -> str:
        log = (self.location.folder / "workers.log").read_text()[-3000:]
        return f"hung: {sample}, {self.result}, alive {self.alive}, to do {self.actions}\n{log}"


@contextlib.contextmanager
def sampling(location: StudyLocation) -> Iterator[Callable[[], BudgetSample]]:
    """Sample the budget in a thread; yield a function that returns the latest sample."""
    last, over = BudgetSample(), threading.Event()

    def run() -> None:
        nonlocal last
        for sample in sample_budget(location):
            last = sample
            if over.wait(0.03):
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lambda: last
    finally:
        over.set()
        thread.join(30)


def _servers(worker: int) -> list[psutil.Process]:
    """Return a worker's fork server, if it runs."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(worker).children()
        return [p for p in children if "multiprocessing.forkserver" in " ".join(p.cmdline())]
    return []


def _trainings(worker: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for server in _servers(worker) for child in server.children()]
    return []


def _kill_one(processes: Sequence[psutil.Process], rng: random.Random) -> bool:
    """Kill a random process; return whether there was one."""
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        rng.choice(processes).kill()
        return True
    return False
