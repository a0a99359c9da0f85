"""Tasks that run in parallel, one on each slot at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TypeVar

from search.trial_process.slot import Slot

Result = TypeVar("Result")
#: Called with a slot and a function that returns whether to end early.
Task = Callable[[Slot, Callable[[], bool]], Result]


class TaskStopped(RuntimeError):
    """A task ended early because another one failed or the program was interrupted."""


def run_on_slots(tasks: Sequence[Task[Result]], slots: Sequence[Slot]) -> list[Result]:
    """Run each task in a thread that has a slot for itself; return the results in order.

    After the first exception, and after KeyboardInterrupt in the calling thread, no further task is
    started, and the running ones are told to end early. When they have ended, the exception is
    raised.
    """
    stop, free = threading.Event(), SimpleQueue[Slot]()
    for slot in slots:
        free.put(slot)

    def run(task: Task[Result]) -> Result:
        slot = free.get()  # there are as many threads as slots
        try:
            if stop.is_set():
                raise TaskStopped
            return task(slot, stop.is_set)
        except BaseException:
            stop.set()
            raise
        finally:
            free.put(slot)

    with ThreadPoolExecutor(max_workers=len(slots)) as pool:
        try:
            futures = [pool.submit(run, task) for task in tasks]
            wait(futures)
        except BaseException:
            stop.set()
            raise
    _raise_first(futures)
    return [future.result() for future in futures]


def _raise_first(futures: Sequence[Future[Result]]) -> None:
    """Raise the exception that stopped the other tasks, if there is one."""
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, TaskStopped)):
        raise error


def share_slots(slots: Sequence[Slot], tasks: int) -> Sequence[Slot]:
    """Divide the threads and the memory of CPU slots among fewer tasks; other slots are kept."""
    if tasks >= len(slots) or any(slot.device != "cpu" for slot in slots):
        return slots
    limits = [slot.memory_gb for slot in slots if slot.memory_gb is not None]
    memory_gb = sum(limits) / tasks if len(limits) == len(slots) else None
    return [Slot("cpu", sum(s.threads for s in slots) // tasks, 1.0, memory_gb)] * tasks


def join_slots(slots: Sequence[Slot]) -> Slot:
    """Return a slot for a single task: of the CPU all slots together, else the first one."""
    return share_slots(slots, 1)[0]
