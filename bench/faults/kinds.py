"""The table of faults. A row is the registration."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

if TYPE_CHECKING:
    from bench.faults.run import Run
    from tests.postgres import PrivatePostgres


class Storage(StrEnum):
    """The database of a study."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class NoTarget(Exception):
    """The target of a fault does not exist now; the fault is tried again later."""


#: Ends a fault. It is called until it succeeds.
Undo = Callable[[], None]
Begin = Callable[["Run", random.Random], Undo | None]
BOTH, SQLITE, POSTGRESQL = tuple(Storage), (Storage.SQLITE,), (Storage.POSTGRESQL,)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    begin: begins it and returns what ends it, if it lasts; raises NoTarget. shortest, longest:
    seconds; in_grace: in grace periods instead. loses: whether it can cost each trial an attempt.
    crashes: whether it ends trainings, which counts as their failure. ends_workers: whether a
    worker may end with one line and exit code 1; none is started before the fault is over.
    """

    begin: Begin
    shortest: float = 0.0
    longest: float = 0.0
    storages: Sequence[Storage] = BOTH
    in_grace: bool = False
    loses: bool = False
    crashes: bool = False
    ends_workers: bool = False

    def seconds(self, grace_s: float) -> tuple[float, float]:
        """Return how long it lasts at least and at most."""
        unit = grace_s if self.in_grace else 1.0
        return self.shortest * unit, self.longest * unit


# --- processes -----------------------------------------------------------------------------------


def _kill_worker(run: Run, rng: random.Random) -> None:
    run.send(run.pick_worker(rng), signal.SIGKILL)


def _kill_training(run: Run, rng: random.Random) -> None:
    _kill(run, rng, run.trainings)


def _kill_server(run: Run, rng: random.Random) -> None:
    _kill(run, rng, run.fork_servers)


def _kill(run: Run, rng: random.Random, find: Callable[[int], list[psutil.Process]]) -> None:
    """Kill one process of a worker that ``find`` returns; note the trainings that end with it."""
    targets = find(run.pick_worker(rng))
    with contextlib.suppress(IndexError, psutil.NoSuchProcess):
        target = rng.choice(targets)
        target.suspend()  # a fork server starts no training meanwhile
        ended = target.children() if find == run.fork_servers else [target]
        run.killed_trainings |= {process.pid for process in ended}
        target.kill()
        return
    raise NoTarget


def _stop_worker(run: Run, rng: random.Random) -> Undo:
    worker = run.pick_worker(rng)
    run.send(worker, signal.SIGSTOP)
    return lambda: run.send(worker, signal.SIGCONT)


def _stop_training(run: Run, rng: random.Random) -> Undo:
    return _stop_processes(run.trainings(run.pick_worker(rng)))


def _suspend_host(run: Run, rng: random.Random) -> Undo:
    """Stop a worker together with its trainings."""
    worker = run.pick_worker(rng)
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(worker)
        return _stop_processes([root, *root.children(recursive=True)])
    raise NoTarget


def _stop_processes(processes: Sequence[psutil.Process]) -> Undo:
    if not processes:
        raise NoTarget

    def send(action: str) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, action)()

    send("suspend")
    return lambda: send("resume")


def _terminate(run: Run, rng: random.Random) -> None:
    run.send(run.pick_worker(rng, is_ready=True), signal.SIGTERM)


def _hang_up(run: Run, rng: random.Random) -> None:
    run.send(run.pick_worker(rng, is_ready=True), signal.SIGHUP)


def _fill_console(run: Run, rng: random.Random) -> None:
    """Terminate a worker; the next worker cannot write to its standard output."""
    _terminate(run, rng)
    run.next_console = "/dev/full"


# --- the host ------------------------------------------------------------------------------------


def _step_clock(run: Run, rng: random.Random) -> None:
    run.step_clock(rng.choice([-1, 1]) * rng.uniform(60, 7200))


def _delete_cache(run: Run, rng: random.Random) -> None:
    shutil.rmtree(_find_cache(run, rng))


def _truncate_cache(run: Run, rng: random.Random) -> None:
    """Truncate a file of the cache."""
    path = rng.choice(sorted(_find_cache(run, rng).iterdir()))
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, int(path.stat().st_size * rng.uniform(0, 0.9)))


def _find_cache(run: Run, rng: random.Random) -> Path:
    caches = [p for p in run.caches.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not caches:
        raise NoTarget
    return rng.choice(sorted(caches))


def _fill_disk(run: Run, rng: random.Random) -> Undo:
    """Fill the disk of the study's folder."""
    if not run.is_small_disk:
        raise NoTarget
    filler = run.location.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (2**16, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return lambda: filler.unlink(missing_ok=True)


# --- SQLite --------------------------------------------------------------------------------------


def _lock_file(run: Run, rng: random.Random) -> Undo:
    connection = sqlite3.connect(
        run.location.folder / "study.db", timeout=0.2, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute(f"BEGIN {rng.choice(['IMMEDIATE', 'EXCLUSIVE'])}")
    except sqlite3.OperationalError:
        connection.close()
        raise NoTarget from None
    return connection.close


def _copy_file(run: Run, rng: random.Random) -> Undo:
    """Copy the database page by page while it is in use, as a backup does."""
    path, over = run.folder / f"backup-{rng.randrange(10**6)}.db", threading.Event()

    def copy() -> None:
        source = sqlite3.connect(run.location.folder / "study.db", timeout=60)
        target = sqlite3.connect(path)
        with contextlib.closing(source), contextlib.closing(target):
            source.backup(target, pages=5, progress=lambda *_: over.wait(0.02) and None)
            (result,) = target.execute("PRAGMA integrity_check").fetchone()
            if result != "ok":
                run.violations.append(f"a copy of the database is damaged: {result}")

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()

    def finish() -> None:
        over.set()
        thread.join(30)

    return finish


# --- PostgreSQL ----------------------------------------------------------------------------------


def _restart_server(run: Run, rng: random.Random) -> Undo:
    postgres = _server(run)
    postgres.stop()
    return postgres.start


def _lock_tables(run: Run, rng: random.Random) -> Undo:
    tables = rng.sample(["trials", "studies", "lesionsearch_workers", "trial_user_attributes"], 2)
    connection = _connect(run)
    try:
        connection.autocommit = False
        connection.execute("SET lock_timeout = '1s'")
        connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
    except psycopg.Error:
        connection.close()
        raise NoTarget from None
    return connection.close


def _make_read_only(run: Run, rng: random.Random) -> Undo:
    """Refuse all writes, as a server does during a failover."""

    def execute(statement: str) -> None:
        with _connect(run) as connection:
            connection.execute(statement)
            connection.execute("SELECT pg_reload_conf()")

    execute("ALTER SYSTEM SET default_transaction_read_only = on")
    return lambda: execute("ALTER SYSTEM RESET default_transaction_read_only")


def _terminate_backends(run: Run, rng: random.Random) -> None:
    _signal_backends(run, rng, "pg_terminate_backend")


def _cancel_statements(run: Run, rng: random.Random) -> Undo:
    """Cancel the running statements of the server repeatedly."""
    over = threading.Event()

    def cancel() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(NoTarget, psycopg.Error):
                _signal_backends(run, rng, "pg_cancel_backend")

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()

    def finish() -> None:
        over.set()
        thread.join()

    return finish


def _signal_backends(run: Run, rng: random.Random, function: str) -> None:
    with _connect(run) as connection:
        connection.execute(
            f"SELECT {function}(pid) FROM pg_stat_activity "
            "WHERE datname = %s AND usename = %s AND random() < %s",
            (run.database, run.role, rng.choice([0.4, 1])),
        )


def _refuse_connections(run: Run, rng: random.Random) -> Undo:
    """Terminate all connections and refuse new ones."""

    def limit(connections: int) -> None:
        with _connect(run) as connection:
            connection.execute(f"ALTER ROLE {run.role} CONNECTION LIMIT {connections}")

    limit(0)
    with contextlib.suppress(NoTarget):
        _signal_backends(run, rng, "pg_terminate_backend")
    return lambda: limit(-1)


def _cut_network(run: Run, rng: random.Random) -> Undo:
    assert run.proxy is not None
    run.proxy.cut(rng.choice([0.4, 1]), rng)
    return run.proxy.heal


def _stall_network(run: Run, rng: random.Random) -> Undo:
    assert run.proxy is not None
    run.proxy.stall()
    return run.proxy.heal


def _server(run: Run) -> PrivatePostgres:
    """Return the server; raise NoTarget if it is not running."""
    assert run.postgres is not None
    if not run.postgres.is_running:
        raise NoTarget
    return run.postgres


def _connect(run: Run) -> psycopg.Connection[Any]:
    """Connect as an administrator with write access."""
    postgres = _server(run)
    try:
        return psycopg.connect(
            f"host=127.0.0.1 port={postgres.port} user=postgres dbname=postgres sslmode=disable",
            dbname=run.database,
            autocommit=True,
            options="-c default_transaction_read_only=off",
        )
    except psycopg.OperationalError:  # the server is starting
        raise NoTarget from None


# fmt: off
KINDS: dict[str, Kind] = {
    "worker killed": Kind(_kill_worker, loses=True),
    "training killed": Kind(_kill_training, crashes=True),
    "fork server killed": Kind(_kill_server, crashes=True),
    "worker stopped": Kind(_stop_worker, 0.2, 0.7, in_grace=True),
    "worker stopped for long": Kind(_stop_worker, 1.5, 2, in_grace=True, loses=True),
    "training stopped": Kind(_stop_training, 0.2, 1.5, in_grace=True),
    "host suspended": Kind(_suspend_host, 1.5, 2, in_grace=True, loses=True),
    "worker terminated": Kind(_terminate, loses=True),
    "terminal closed": Kind(_hang_up, loses=True),
    "console full": Kind(_fill_console, loses=True),
    "clock stepped": Kind(_step_clock),
    "cache deleted": Kind(_delete_cache),
    "cache truncated": Kind(_truncate_cache),
    "disk full": Kind(_fill_disk, 0.5, 2, loses=True, ends_workers=True),
    "database file locked": Kind(_lock_file, 0.5, 3, SQLITE),
    "database file copied": Kind(_copy_file, 0.5, 2, SQLITE),
    "server restarted": Kind(_restart_server, 0.1, 2, POSTGRESQL),
    "tables locked": Kind(_lock_tables, 0.5, 3, POSTGRESQL),
    "server read-only": Kind(_make_read_only, 0.5, 3, POSTGRESQL),
    "backends terminated": Kind(_terminate_backends, storages=POSTGRESQL),
    "statements cancelled": Kind(_cancel_statements, 0.3, 1.5, POSTGRESQL),
    "connections refused": Kind(_refuse_connections, 0.5, 3, POSTGRESQL),
    "network cut": Kind(_cut_network, 0.2, 3, POSTGRESQL),
    "network stalled": Kind(_stall_network, 0.2, 3, POSTGRESQL),
}
# fmt: on
