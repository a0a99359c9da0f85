"""Connection to a Ray cluster."""

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
from search.signals import blocked_in_children

try:
    import ray as _ray
except ModuleNotFoundError:
    raise InputError(
        "engine: 'ray' needs the package ray; install lesionsearch with its extra 'ray'"
    ) from None

ray: Any = _ray  # large parts have no types

#: Bytes of the object store of a new cluster; workers communicate through the database.
OBJECT_STORE_BYTES = 100_000_000


@contextmanager
def connect(address: str | None) -> Iterator[bool]:
    """Connect to a cluster, or start one; yield whether it was started here.

    A connection or cluster that existed before is left alone.
    """
    if ray.is_initialized():
        yield False
        return
    is_new = _connect_or_start(address or os.environ.get("RAY_ADDRESS") or None)
    try:
        yield is_new
    finally:
        ray.shutdown()


def _connect_or_start(address: str | None) -> bool:
    try:
        cluster = address
        if address is None or "://" not in address:
            # host:port of the cluster that Ray would connect to; None if it would start one.
            cluster = ray._private.services.canonicalize_bootstrap_address(address)
        # Files of an earlier cluster on this machine may name one that has ended.
        if cluster is None or not (address or _accepts_connections(cluster)):
            _init("local", object_store_memory=OBJECT_STORE_BYTES)
            return True
        if not _accepts_connections(cluster):  # Ray itself would wait for minutes
            raise ConnectionError("connection refused")
        _init(address or cluster)
    except Exception as error:  # Ray raises a bare Exception for a slow start
        raise InputError(
            f"engine: no Ray cluster could be used at {address or 'this machine'} "
            f"({' '.join(str(error).split())[:200]}); start one with `ray start --head`, "
            "or give no address to use this machine alone"
        ) from None
    return False


def _accepts_connections(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            return True
    except OSError:
        return False


def _init(address: str, **kwargs: Any) -> None:
    handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    utils = ray._private.utils
    # The command line may contain a password, and Ray's list of jobs would show it.
    get_command_line, utils.get_entrypoint_name = utils.get_entrypoint_name, lambda: "lesionsearch"
    try:
        # The processes of a new cluster must survive a closed terminal, so that the workers can
        # requeue their trials.
        with blocked_in_children():
            ray.init(
                address,
                namespace="lesionsearch",
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **kwargs,
            )
    finally:
        utils.get_entrypoint_name = get_command_line
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
