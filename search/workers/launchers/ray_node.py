"""The actor that runs a worker on a node of a Ray cluster.

The module is pickled by value, so that a node without the package can report that; for the same
reason it imports nothing of the package at its top.
"""

from __future__ import annotations

import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any, Literal

import ray as _ray

ray: Any = _ray  # large parts have no types

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class SealedJob:
    """A pickled worker job, which may contain a password; never shown by Ray."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __repr__(self) -> str:
        return "<sealed>"


@dataclass(frozen=True)
class ActorResult:
    """How a worker ended.

    status: ended (reason is a StopReason), input_error, missing (the node lacks a module) or
    crashed. Enums of the package could not be unpickled on a node without it.
    """

    status: Literal["ended", "input_error", "missing", "crashed"]
    reason: str
    trials: int = 0


class WorkerActor:
    """The actor. It has two threads: one runs the worker, the other one can stop it."""

    def __init__(self) -> None:
        self.stop_event = threading.Event()

    def locate(self) -> tuple[str, str]:
        """Return the host name and Ray's id of the node."""
        return socket.gethostname(), ray.get_runtime_context().get_node_id()

    def stop(self) -> None:
        """Make the worker requeue its trial and end."""
        self.stop_event.set()

    def run(self, job: SealedJob) -> ActorResult:
        """Run the worker; errors are returned as text, since a node may lack their types."""
        try:
            return _run(job, self.stop_event)
        except ImportError as error:
            return ActorResult("missing", str(error))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            return ActorResult("crashed", text)


def _run(job: SealedJob, stop_event: threading.Event) -> ActorResult:
    from lesionseg.errors import InputError

    try:
        location, slot, work = ray.cloudpickle.loads(job.content)
        if work is None:
            from search.workers.loop import join_and_run_trials as work
        result = work(location, slot, stop_event)
    except InputError as error:
        return ActorResult("input_error", str(error))
    return ActorResult("ended", str(result.reason), result.trials)
