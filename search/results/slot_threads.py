"""Tasks that run in parallel, one on each slot at a time."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
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
    """Divide the threads, the memory and the devices of all slots among fewer tasks.

    Tasks share a device only if there are fewer devices than tasks.
    """
    if tasks >= len(slots):
        return slots
    total: dict[str, float] = defaultdict(float)
    earlier: list[int] = []  # for each slot, the number of slots before it on its device
    counts: Counter[str] = Counter()
    for slot in slots:
        total[slot.device] += slot.share
        earlier.append(counts[slot.device])
        counts[slot.device] += 1
    order = sorted(range(len(slots)), key=lambda i: earlier[i])  # stable
    devices = [slots[i].device for i in order[:tasks]]
    used = Counter(devices)
    limits = [slot.memory_gb for slot in slots if slot.memory_gb is not None]
    memory_gb = sum(limits) / tasks if len(limits) == len(slots) else None
    threads = sum(slot.threads for slot in slots) // tasks
    return [
        Slot(device, threads, min(1.0, total[device] / used[device]), memory_gb)
        for device in devices
    ]


def join_slots(slots: Sequence[Slot]) -> Slot:
    """Return a slot for a single task, with the threads of all slots."""
    return share_slots(slots, 1)[0]
