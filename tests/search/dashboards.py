"""A dashboard as people start it, and requests that no browser would make."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from search.monitoring.dashboard.access import ListenAddress
from search.monitoring.dashboard.server import Dashboard
from search.monitoring.dashboard.study_source import find_source

COMMAND = Path(sys.executable).with_name("lesionsearch")
#: Seconds until it is there: it imports torch and plotly, beside much else.
PATIENCE = 90.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    process: subprocess.Popen | None
    port: int
    said: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = {}, body: Any = None
    ) -> Answer:
        """The path goes out as it is written: nothing is normalised."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, path, data, {**told, **headers})
            answer = connection.getresponse()
            found = {k.lower(): v for k, v in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()


@contextmanager
def served_here(folder: Path, address: ListenAddress) -> Iterator[Server]:
    """The same within this process, without its signals: a second faster."""
    shown, over = Dashboard(find_source(str(folder)), address), threading.Event()
    server = shown.create_server()
    keeper = threading.Thread(target=shown.refresh_until, args=(over,))
    serving = threading.Thread(target=server.run)
    keeper.start()
    serving.start()
    try:
        yield Server(None, server.effective_port, shown.url_of(server))
    finally:
        over.set()
        server.trigger.pull_trigger(server.close)  # asyncore belongs to the thread that runs it
        server.task_dispatcher.shutdown()
        keeper.join(30)
        serving.join(30)


@contextmanager
def served(*args: Any, env: Mapping[str, str] = {}) -> Iterator[Server]:
    """`lesionsearch dashboard` with a free port, ended by SIGTERM if it has not ended."""
    process = subprocess.Popen(
        [COMMAND, "dashboard", *map(str, args), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    try:
        said = _first_line(process)
        found = re.search(r"http://\S+:(\d+)/", said)
        assert found, said + process.stderr.read()
        yield Server(process, int(found[1]), said)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


def _first_line(process: subprocess.Popen) -> str:
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
    return lines.get(timeout=PATIENCE)
