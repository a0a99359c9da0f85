"""Workers that are killed, frozen and cut off at random, and what came of their study."""

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
from search.storage.leases import GRACE_VARIABLE
from search.study.creation import create_or_resume
from search.study.location import StudyLocation
from tests.search import stub_training
from tests.search.chaos_checks import LeaseTransaction, Verdict, books, judge
from tests.search.worker_processes import WorkerProcesses

#: Seconds within which processes are gone whose parent is.
GONE_WITHIN = 10.0


@dataclass(frozen=True)
class Plan:
    """What is done to a study. Kills of a kind come at random instants, spread over its trials.

    grace: seconds of silence after which a worker counts as dead. freezes: workers that are
    stopped for half as long again, and then go on. seconds: the shortest and the longest epoch.
    patience: seconds after which the run counts as hung.
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
    patience: float = 280.0
    seed: int = 0

    def acts(self, chance: random.Random) -> list[tuple[float, str]]:
        """(trials that have ended when it is due, what is done), in order."""
        kinds = {"worker": self.kill_workers, "child": self.kill_children}
        kinds |= {"server": self.kill_servers, "freeze": self.freezes}
        last = 0.93 * self.trials
        acts = [(chance.uniform(0, last), kind) for kind, n in kinds.items() for _ in range(n)]
        even = [(i + 1) / (self.restarts + 1) for i in range(self.restarts)]
        return sorted(acts + [(self.trials * part, "restart") for part in even])


#: What a study must survive, as it is measured and tested.
FULL = Plan(
    8, 200, kill_workers=28, kill_children=16, kill_servers=4, freezes=3, grace=20.0, patience=900
)


@dataclass
class Told:
    """What was done, and what was seen meanwhile.

    done: acts by kind. died: exit codes of workers that nobody killed. peak: the most trials that
    counted against the budget at one moment. orphans: processes left when all workers were gone.
    """

    done: Counter[str] = field(default_factory=Counter)
    died: list[int] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0
    orphans: list[str] = field(default_factory=list)


def stub_spec(plan: Plan, name: str) -> StudySpec:
    """Of a study whose space never ends."""
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
    """Pictures of 16 pixels with a square lesion, no two alike: a study needs some."""
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
) -> tuple[Told, Verdict]:
    """A new study in a folder, put through a plan and judged. restart: of the database."""
    data = write_pairs(folder / "data")
    create_or_resume(stub_spec(plan, "s"), data, folder / "s", storage)
    join = StudyLocation("s", folder / "s", storage)
    told = wreak(worker_processes, join, plan, restart)
    return told, judge(join, plan.trials, plan.epochs)


def wreak(
    worker_processes: WorkerProcesses,
    join: StudyLocation,
    plan: Plan,
    restart: Callable[[], None] = lambda: None,
) -> Told:
    """Has a study worked on under a plan until every worker has left by itself."""
    return _Chaos(worker_processes, join, plan, restart).run()


class _Chaos:
    def __init__(
        self,
        worker_processes: WorkerProcesses,
        join: StudyLocation,
        plan: Plan,
        restart: Callable[[], None],
    ) -> None:
        self.worker_processes, self.join, self.plan, self.restart = (
            worker_processes,
            join,
            plan,
            restart,
        )
        self.chance, self.told = random.Random(plan.seed), Told()
        self.acts = plan.acts(self.chance)
        self.alive: set[int] = set()
        self.killed: set[int] = set()
        self.frozen: dict[int, float] = {}

    def run(self) -> Told:
        self.worker_processes.ended()  # it has imported everything
        began = time.monotonic()
        with sampled(self.join) as sample:
            for _ in range(self.plan.workers):
                self._start()
            while self.alive:
                assert time.monotonic() - began < self.plan.patience, self._standing(sample())
                self._replace_the_dead()
                self._thaw()
                self._act(sample().ended)
                time.sleep(self.chance.uniform(0, 0.05))
            self.told.peak = self._last_look(sample).peak
        self.told.seconds = time.monotonic() - began
        self.told.orphans = self._left_over()
        return self.told

    def _start(self) -> None:
        environment = {
            GRACE_VARIABLE: str(self.plan.grace),
            stub_training.SECONDS: self.plan.seconds,
        }
        log = self.join.folder / "workers.log"
        self.alive.add(self.worker_processes.start(self.join, log, environment))

    def _replace_the_dead(self) -> None:
        for pid, code in self.worker_processes.ended().items():
            self.alive.remove(pid)
            self.frozen.pop(pid, None)
            if code == 0:
                continue
            if pid not in self.killed:
                self.told.died.append(code)
            self._start()

    def _thaw(self) -> None:
        for pid, until in list(self.frozen.items()):
            if time.monotonic() > until:
                self.worker_processes.signal(pid, signal.SIGCONT)
                del self.frozen[pid]

    def _act(self, ended: int) -> None:
        """The next act that is due; it is due still where nobody is there to suffer it."""
        if self.acts and self.acts[0][0] <= ended and self._done(self.acts[0][1]):
            self.told.done[self.acts.pop(0)[1]] += 1

    def _done(self, kind: str) -> bool:
        if kind == "restart":
            self.restart()
            return True
        pid = self.chance.choice(sorted(self.alive))
        if kind == "worker":
            self.killed.add(pid)
            return self.worker_processes.signal(pid, signal.SIGKILL)
        if kind == "freeze":
            self.frozen[pid] = time.monotonic() + 1.5 * self.plan.grace
            return self.worker_processes.signal(pid, signal.SIGSTOP)
        return _killed(_servers(pid) if kind == "server" else _trainings(pid), self.chance)

    def _last_look(self, sample: Callable[[], LeaseTransaction]) -> LeaseTransaction:
        """A look that began after everybody had left."""
        enough, until = sample().looks + 2, time.monotonic() + GONE_WITHIN
        while sample().looks < enough and time.monotonic() < until:
            time.sleep(0.01)
        return sample()

    def _left_over(self) -> list[str]:
        until = time.monotonic() + GONE_WITHIN
        while (found := self.worker_processes.others()) and time.monotonic() < until:
            time.sleep(0.05)
        return [str(process) for process in found]

    def _standing(self, seen: LeaseTransaction) -> str:
        words = (self.join.folder / "workers.log").read_text()[-3000:]
        return f"hung: {seen}, {self.told}, alive {self.alive}, to do {self.acts}\n{words}"


@contextlib.contextmanager
def sampled(join: StudyLocation) -> Iterator[Callable[[], LeaseTransaction]]:
    """Looks at the study's books all the while; gives what was seen last, and the peak so far."""
    last, over = LeaseTransaction(), threading.Event()

    def look() -> None:
        nonlocal last
        for seen in books(join):
            last = seen
            if over.wait(0.03):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: last
    finally:
        over.set()
        thread.join(30)


def _servers(worker: int) -> list[psutil.Process]:
    """A worker's fork server, if it runs."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(worker).children()
        return [p for p in children if "multiprocessing.forkserver" in " ".join(p.cmdline())]
    return []


def _trainings(worker: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for server in _servers(worker) for child in server.children()]
    return []


def _killed(processes: Sequence[psutil.Process], chance: random.Random) -> bool:
    """Whether one of them was there to be killed."""
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        chance.choice(processes).kill()
        return True
    return False
