"""Workers as processes of this host, one per slot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lesionseg.data.merge import list_roots
from lesionseg.errors import InputError
from search.errors import JobFailed
from search.storage.database import STORAGE_VARIABLE
from search.study.location import StudyLocation
from search.trial_process.slot import Slot
from search.workers.launchers.launch_context import LaunchContext

#: Seconds that workers have to requeue their trials before they are killed.
STOP_TIMEOUT_S = 12.0
POLL_S = 0.25
#: Exit code of a worker with bad input.
INPUT_ERROR = 2

WorkerCommand = Callable[[StudyLocation, Slot], list[str]]


def worker_command(location: StudyLocation, slot: Slot) -> list[str]:
    """Return the command of a worker; the storage's password is passed in the environment."""
    # -P: a file of the user must not hide a module of the same name.
    command = [sys.executable, "-P", "-m", "cli", "worker", location.name]
    command += ["--out", str(location.folder), "--device", slot.device]
    command += ["--threads", str(slot.threads), "--share", f"{slot.share}"]
    if slot.memory_gb is not None:
        command += ["--memory-gb", f"{slot.memory_gb:.3f}"]
    roots = list_roots(location.data) if location.data else ()
    return command + [word for root in roots for word in ("--data", str(root))]


def run_locally(
    context: LaunchContext, slots: Sequence[Slot], command: WorkerCommand = worker_command
) -> None:
    """Run a worker in every slot until each exited normally, or until ``stop_event`` is set.

    Raises:
        InputError: a worker exited with code 2; the message is its last line.
        JobFailed: every worker was given up.
    """
    logs = context.location.folder / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    workers = [
        LocalWorker(context, slot, logs / f"{i}.log", command) for i, slot in enumerate(slots)
    ]
    try:
        while not context.stop_event.is_set() and not all(worker.is_ended for worker in workers):
            for worker in workers:
                worker.poll()
            context.on_poll()
            context.stop_event.wait(POLL_S)
    finally:
        _stop([worker.process for worker in workers if worker.process is not None])
    context.on_poll()
    if workers and all(worker.policy.is_exhausted for worker in workers):
        raise JobFailed(f"every worker was given up; last line of one: {workers[0].last_line()}")


class LocalWorker:
    """A slot and its worker process."""

    def __init__(
        self, context: LaunchContext, slot: Slot, log: Path, command: WorkerCommand
    ) -> None:
        self.context, self.slot, self.log, self.command = context, slot, log, command
        self.policy = context.new_restart_policy()
        self.process: subprocess.Popen[bytes] | None = None
        self._exited_normally = False

    @property
    def is_ended(self) -> bool:
        """Whether the worker is not started again."""
        return self._exited_normally or self.policy.is_exhausted

    def poll(self) -> None:
        """Start the worker, or check whether it exited."""
        if self.process is None:
            if not self.is_ended and self.policy.is_due():
                self._start()
            return
        code = self.process.poll()
        if code is not None:
            self.process = None
            self._handle_exit(code)

    def last_line(self) -> str:
        """Return the last line of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = text.strip().splitlines()
        return lines[-1].removeprefix("lesionsearch: ") if lines else "none"

    def _start(self) -> None:
        environment, slot = dict(os.environ), self.slot
        if self.context.location.storage is not None:
            environment[STORAGE_VARIABLE] = self.context.location.storage
        if slot.device.startswith("cuda:"):
            # The worker sees only its own GPU, whatever library it uses.
            gpu = _physical_gpu(int(slot.device.removeprefix("cuda:")))
            environment["CUDA_VISIBLE_DEVICES"] = gpu
            slot = replace(slot, device="cuda")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command(self.context.location, slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C in a terminal must not reach the workers; this process stops them.
                start_new_session=True,
            )
        self.policy.record_start()

    def _handle_exit(self, code: int) -> None:
        self._exited_normally = code in {0, INPUT_ERROR}
        if code == INPUT_ERROR:
            raise InputError(self.last_line())
        if code == 0:
            return
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        action = self.policy.record_failure(self.context.count_finished())
        self.context.on_event(f"worker {self.log.stem} died ({cause}); {action}")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate processes; kill those that do not exit in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _physical_gpu(index: int) -> str:
    """Return the GPU that has this index among those visible to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return gpus[index] if index < len(gpus) else str(index)
