"""What runs on a node of a Ray cluster: the actor around a worker.

It is pickled by value, so that a node that lacks the package can still say so; hence nothing of
ours is imported at the top.
"""

from __future__ import annotations

import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import ray as _ray

#: Much of it has no types.
ray: Any = _ray

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Sealed:
    """What a worker is told, a password among it: opened on the node, never shown."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __repr__(self) -> str:
        return "<sealed>"


@dataclass(frozen=True)
class Told:
    """How a worker ended. how: done, asked or enough, or else lacking, input or broken."""

    how: str
    trials: int = 0
    text: str = ""


class RayWorker:
    """The actor. Two threads: one works, and the other can tell it to stop."""

    def __init__(self) -> None:
        self.stopping = threading.Event()

    def where(self) -> tuple[str, str]:
        """Its host's name, and Ray's number of its node."""
        return socket.gethostname(), ray.get_runtime_context().get_node_id()

    def stop(self) -> None:
        """Asks for the work to be put down."""
        self.stopping.set()

    def work(self, sealed: Sealed) -> Told:
        """Serves the study; exceptions are told as text, since a node may lack their types."""
        try:
            return _serve(sealed, self.stopping)
        except ImportError as error:
            return Told("lacking", text=str(error))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
            return Told("broken", text=text)


def _serve(sealed: Sealed, stopping: threading.Event) -> Told:
    from lesionseg.errors import InputError

    try:
        join, slot, serve = ray.cloudpickle.loads(sealed.content)
        if serve is None:
            from search.workers.loop import serve as own

            serve = own
        served = serve(join, slot, stopping)
    except InputError as error:
        return Told("input", text=str(error))
    return Told(served.why, served.trials)
