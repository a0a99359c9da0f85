"""A private PostgreSQL server that tests may stop and kill, and a proxy that loses commits."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
import pytest

from tests.conftest import _lacking

#: Seconds within which a server starts or stops.
DEADLINE = 60.0

#: A role that needs its password, "right"; every other one is trusted.
GUARDED = "guarded"


def free_port() -> int:
    """Return a port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def binaries() -> Path | None:
    """Return the folder of initdb and postgres; None where PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if config := shutil.which("pg_config"):
        output = subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout
        folders.insert(0, Path(output.strip()))
    if on_path := shutil.which("initdb"):
        folders.insert(0, Path(on_path).parent)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


class PrivatePostgres:
    """A PostgreSQL server with its own folder and port."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self.bin, self.port = folder, bin_folder, free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            names = {p.pw_name for p in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        rules = folder / "data" / "pg_hba.conf"
        guarded = f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(guarded + rules.read_text())

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._server is not None

    def url(self, db: str = "postgres", port: int | None = None) -> str:
        """Return the SQLAlchemy URL of a database; port: of a proxy."""
        address = f"127.0.0.1:{port or self.port}/{db}"
        return f"postgresql+psycopg://postgres@{address}?sslmode=disable&gssencmode=disable"

    def run(self, statement: str, db: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        with self._connect(db) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create(self, db: str) -> str:
        """Create an empty database and return its URL."""
        self.run(f"CREATE DATABASE {db}")
        return self.url(db)

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]
        options += ["-c", "unix_socket_directories=", "-c", f"port={self.port}"]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self.bin / "postgres", "-D", "data", *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise
                time.sleep(0.02)

    def restart(self, pause: float) -> None:
        """Stop the server, and start it after a pause in seconds."""
        self.stop()
        time.sleep(pause)
        self.start()

    def stop(self) -> None:
        """Stop the server without a checkpoint, so that the next start recovers."""
        if self._server is None:
            return
        children = psutil.Process(self._server.pid).children(recursive=True)
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while any(map(_is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.01)  # they hold shared memory that the next start needs
        self._server = None

    def _connect(self, db: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            f"host=127.0.0.1 port={self.port} user=postgres dbname={db} sslmode=disable",
            autocommit=True,
        )

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            check=True,
            capture_output=True,
            **self._as,
        )


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class CommitProxy:
    """A port in front of the server that breaks the connection at the next COMMIT.

    ``cut("before")``: the server does not receive it. ``cut("after")``: the server has committed,
    and the acknowledgement is lost.
    """

    def __init__(self, server_port: int) -> None:
        self._to, self._cut, self.cuts = server_port, "", 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, when: Literal["before", "after"]) -> None:
        """Break the next connection that commits."""
        self._cut = when

    def close(self) -> None:
        """Accept no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                if self._cut and b"COMMIT" in data:
                    when, self._cut = self._cut, ""
                    self.cuts += 1
                    client.shutdown(socket.SHUT_WR)  # no response reaches the client
                    if when == "after":
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                    return
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            server.close()

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        finally:
            for end in (client, server):
                end.close()


@pytest.fixture(scope="session")
def private_postgres() -> Iterator[PrivatePostgres]:
    """A running server; a test that stops it starts it again."""
    bin_folder = binaries()
    if bin_folder is None:
        _lacking("no initdb; install PostgreSQL's server")
    assert bin_folder is not None
    # Not below pytest's folder, which only its user may enter.
    folder = Path(tempfile.mkdtemp(prefix=f"lesionsearch-postgres-{getpass.getuser()}-"))
    server = PrivatePostgres(folder, bin_folder)
    try:
        server.start()
        server.run(f"CREATE ROLE {GUARDED} LOGIN PASSWORD 'right'")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
