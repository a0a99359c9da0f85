"""Which Ray cluster there is, and how to be connected to it without leaving traces."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lesionseg.errors import InputError

try:
    import ray as _ray
except ModuleNotFoundError:
    raise InputError(
        "engine: 'ray' needs the package ray; install lesionsearch with its extra 'ray'"
    ) from None

#: Much of it has no types.
ray: Any = _ray

#: Bytes of a cluster of our own: workers talk through the database, hardly through Ray.
OBJECT_STORE = 100_000_000


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Within it, Ray is connected; whether the cluster is ours. Ends only what it began."""
    if ray.is_initialized():
        yield False
        return
    ours = _connect(address)
    try:
        yield ours
    finally:
        ray.shutdown()


def _connect(address: str | None) -> bool:
    given = address or os.environ.get("RAY_ADDRESS") or None
    try:
        # What an earlier cluster of this machine left behind may name one that is dead.
        found = given if given and "://" in given else _bootstrap(given)
        if found is None or not (given or _answers(found)):
            _init("local", object_store_memory=OBJECT_STORE)
            return True
        if not _answers(found):  # Ray itself would wait for minutes
            raise ConnectionError("nobody answers")
        _init(given or found)
    except Exception as error:  # one that starts too slowly is told as a bare Exception
        raise InputError(
            f"engine: no Ray cluster could be used at {given or 'this machine'} "
            f"({' '.join(str(error).split())[:200]}); start one with `ray start --head`, "
            "or name none to work on this machine alone"
        ) from None
    return False


def _bootstrap(address: str | None) -> str | None:
    """host:port of the cluster that Ray would connect to, None where it would start one."""
    found: str | None = ray._private.services.canonicalize_bootstrap_address(address)
    return found


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            return True
    except OSError:
        return False


def _init(address: str | None, **kwargs: Any) -> None:
    with _sigterm_kept(), _command_line_hidden():
        ray.init(
            address,
            namespace="lesionsearch",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **kwargs,
        )


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it is connected to."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _command_line_hidden() -> Iterator[None]:
    """Ray lists every driver with its command line, in which --storage may stand."""
    before = ray._private.utils.get_entrypoint_name
    ray._private.utils.get_entrypoint_name = lambda: "lesionsearch"
    try:
        yield
    finally:
        ray._private.utils.get_entrypoint_name = before
