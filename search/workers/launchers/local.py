"""Workers as processes of this host: one a slot, started again where one dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lesionseg.data.sets import each_root
from lesionseg.errors import InputError
from search.errors import JobFailed
from search.storage.database import STORAGE_VARIABLE
from search.study.location import StudyLocation
from search.trial_process.slot import Slot, StopEvent

#: A slot whose worker died so often in a row, without any trial having ended, is given up.
DEATHS = 10
#: Seconds before a dead worker is replaced: 1, 2, 4, ... and at most this.
LONGEST = 60.0
#: Seconds that workers are given to put their trials down.
LEAVE_WITHIN = 12.0
#: Seconds between two looks at the workers.
TICK = 0.25


def run_locally(
    join: StudyLocation,
    slots: Sequence[Slot],
    *,
    stopping: StopEvent,
    progress: Callable[[], int],
    on_tick: Callable[[], None] = lambda: None,
    on_event: Callable[[str], None] = lambda told: None,
    command: Callable[[StudyLocation, Slot], list[str]] | None = None,
) -> None:
    """Keeps a worker in every slot until each has said that the study needs it no more.

    progress: how many trials have ended so far; deaths are forgiven while it grows. on_tick is
    called several times a second. command: what starts a worker.
    Raises InputError where a worker refuses its task, in its own words; Failed where every slot
    was given up; returns early when ``stopping`` is set, once the workers have left.
    """
    logs = join.folder / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    crew = [
        _Post(join, slot, logs / f"{i}.log", command or worker_command, progress, on_event)
        for i, slot in enumerate(slots)
    ]
    try:
        while not stopping.is_set() and any(post.is_open for post in crew):
            for post in crew:
                post.look()
            on_tick()
            stopping.wait(TICK)
    finally:
        _dismiss(crew)
    on_tick()
    if crew and all(post.given_up for post in crew):
        raise JobFailed(
            f"every worker died again and again; the last words of one: {crew[0].words()}"
        )


def worker_command(join: StudyLocation, slot: Slot) -> list[str]:
    """How a worker of this study is started; its storage's password goes by the environment."""
    # -P: a file of the user's that is called like a module of ours must not be taken for it.
    command = [sys.executable, "-P", "-m", "cli", "worker", join.name, "--out", str(join.folder)]
    command += ["--device", slot.device, "--threads", str(slot.threads), "--share", f"{slot.share}"]
    if slot.memory_gb is not None:
        command += ["--memory-gb", f"{slot.memory_gb:.3f}"]
    roots = each_root(join.data) if join.data else ()
    return command + [word for root in roots for word in ("--data", str(root))]


class _Post:
    """A slot and whoever works in it."""

    def __init__(
        self,
        join: StudyLocation,
        slot: Slot,
        log: Path,
        command: Callable[[StudyLocation, Slot], list[str]],
        progress: Callable[[], int],
        on_event: Callable[[str], None],
    ) -> None:
        self.join, self.slot, self.log, self.command = join, slot, log, command
        self.progress, self.on_event = progress, on_event
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths, self.seen, self.due = 0, progress(), 0.0
        self.done = self.given_up = False

    @property
    def is_open(self) -> bool:
        return not (self.done or self.given_up)

    def look(self) -> None:
        """Starts a worker where there is none, and takes note of one that has ended."""
        if not self.is_open:
            return
        if self.process is None:
            if time.monotonic() >= self.due:
                self._start()
            return
        code = self.process.poll()
        if code is not None:
            self.process = None
            self._ended(code)

    def _start(self) -> None:
        environment = dict(os.environ)
        if self.join.storage is not None:
            environment[STORAGE_VARIABLE] = self.join.storage
        device = self.slot.device
        slot = self.slot
        if device.startswith("cuda:"):
            # The one GPU is all that this worker sees: whatever library it uses finds no other.
            environment["CUDA_VISIBLE_DEVICES"] = _physical(device.removeprefix("cuda:"))
            slot = Slot("cuda", slot.threads, slot.share, slot.memory_gb)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command(self.join, slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C reaches the whole group of a terminal; who is told what is for us to say.
                start_new_session=True,
            )

    def _ended(self, code: int) -> None:
        if code == 0:
            self.done = True
            return
        if code == 2:
            self.done = True
            raise InputError(self.words())
        so_far = self.progress()
        self.deaths = 1 if so_far > self.seen else self.deaths + 1
        self.seen = so_far
        if self.deaths >= DEATHS:
            self.given_up = True
            self.on_event(f"worker {self.log.stem} died {DEATHS} times in a row and is given up")
            return
        pause = min(LONGEST, 2.0 ** (self.deaths - 1))
        self.due = time.monotonic() + pause
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.on_event(f"worker {self.log.stem} died ({how}); another starts in {pause:g} s")

    def words(self) -> str:
        """The last line that it wrote."""
        lines = (
            self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        )
        return lines[-1].removeprefix("lesionsearch: ") if lines else "none"


def _dismiss(crew: Sequence[_Post]) -> None:
    """Asks all to leave, waits for them, and ends those that do not."""
    there = [post.process for post in crew if post.process is not None]
    for process in there:
        process.terminate()
    until = time.monotonic() + LEAVE_WITHIN
    for process in there:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _physical(index: str) -> str:
    """The GPU that this process counts as ``index``, as a process with nothing hidden counts."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    known = [each.strip() for each in visible.split(",") if each.strip()]
    return known[int(index)] if int(index) < len(known) else index
