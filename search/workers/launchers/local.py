"""Workers as processes of this host, one per slot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import psutil

from lesionseg.data.merge import list_roots
from lesionseg.errors import InputError
from search.errors import WORKER_BLOCKED
from search.storage.database import STORAGE_VARIABLE
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.launchers.launcher import LaunchContext, Launcher, ManagedWorker

#: Seconds that workers have to requeue their trials before they are killed.
STOP_TIMEOUT_S = 30.0
#: Exit code of a worker with bad input.
INPUT_ERROR = 2

WorkerCommand = Callable[[StudyLocation, Slot], list[str]]


def worker_command(location: StudyLocation, slot: Slot, *, keep_going: bool = False) -> list[str]:
    """Return the command of a worker; the storage's password is passed in the environment."""
    # -P: a file of the user must not hide a module of the same name.
    command = [sys.executable, "-P", "-m", "cli", "worker", location.name]
    command += ["--out", str(location.folder), "--device", slot.device]
    command += ["--threads", str(slot.threads), "--share", f"{slot.share}"]
    if slot.memory_gb is not None:
        command += ["--memory-gb", f"{slot.memory_gb:.3f}"]
    if keep_going:
        command.append("--keep-going")
    roots = list_roots(location.data) if location.data else ()
    return command + [word for root in roots for word in ("--data", str(root))]


class LocalWorker(ManagedWorker):
    """A slot and its worker process."""

    def __init__(self, context: LaunchContext, slot: Slot, log: Path) -> None:
        super().__init__(log.stem, context)
        self.slot, self.log = slot, log


class LocalLauncher(Launcher):
    """Runs a worker in every slot; InputError if one exits with code 2, with its last line."""

    poll_s = 0.25

    def __init__(
        self, context: LaunchContext, slots: Sequence[Slot], command: WorkerCommand = worker_command
    ) -> None:
        super().__init__(context)
        self.command = command
        logs = context.location.folder / "workers"
        logs.mkdir(parents=True, exist_ok=True)
        self.workers = [
            LocalWorker(context, slot, logs / f"{i}.log") for i, slot in enumerate(slots)
        ]

    def start(self, worker: LocalWorker) -> None:
        environment, slot, location = dict(os.environ), worker.slot, self.context.location
        if location.storage is not None:
            environment[STORAGE_VARIABLE] = location.storage
        if slot.device.startswith("cuda:"):
            # The worker sees only its own GPU, whatever library it uses.
            gpu = _physical_gpu(int(slot.device.removeprefix("cuda:")))
            environment["CUDA_VISIBLE_DEVICES"] = gpu
            slot = replace(slot, device="cuda")
        with _open_log(worker.log) as log:
            worker.handle = psutil.Popen(
                self.command(location, slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C in a terminal must not reach the workers; this process stops them.
                start_new_session=True,
            )
        worker.record_start()

    def check(self, worker: LocalWorker) -> None:
        code = worker.handle.poll()
        if code is None:
            return
        worker.handle = None
        worker.is_done = code == 0
        if not code:
            return
        last_line = _read_last_line(worker.log)
        # After a failure, the device of this worker may be lost; other workers can continue.
        if code == INPUT_ERROR and not worker.failures:
            raise InputError(last_line)
        self.last_failure = f"last line of one: {last_line}"
        if code == WORKER_BLOCKED:
            worker.give_up(f"worker {worker.name} stopped: {last_line}")
        else:
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            worker.record_failure(f"worker {worker.name} died ({cause})")

    def stop(self) -> None:
        """Terminate all workers; kill those that do not exit within STOP_TIMEOUT_S."""
        processes = [worker.handle for worker in self.workers if worker.handle is not None]
        for process in processes:
            process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
        for process in alive:
            process.kill()
            process.wait()


def _open_log(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except OSError:  # a full disk must not stop the training
        return Path(os.devnull).open("ab")


def _read_last_line(log: Path) -> str:
    with suppress(OSError):
        if lines := log.read_text(errors="replace").strip().splitlines():
            return lines[-1].removeprefix("lesionsearch: ")
    return "none"


def _physical_gpu(index: int) -> str:
    """Return the GPU that has this index among those visible to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return gpus[index] if index < len(gpus) else str(index)
