"""A running dashboard, and HTTP requests to it."""

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
from search.monitoring.dashboard.server import Dashboard, find_source

COMMAND = Path(sys.executable).with_name("lesionsearch")
#: Seconds until the server listens; it imports torch and plotly.
START_TIMEOUT_S = 90.0


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    process: subprocess.Popen | None
    port: int
    first_line: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = {}, body: Any = None
    ) -> Response:
        """Send a request whose path is not normalised."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        default = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, path, data, {**default, **headers})
            response = connection.getresponse()
            response_headers = {k.lower(): v for k, v in response.getheaders()}
            return Response(response.status, response_headers, response.read())
        finally:
            connection.close()


@contextmanager
def serve_in_process(folder: Path, address: ListenAddress) -> Iterator[Server]:
    """Serve a study from this process, which is faster than a new one."""
    with serve(Dashboard(find_source(str(folder)), address)) as server:
        yield server


@contextmanager
def serve(dashboard: Dashboard) -> Iterator[Server]:
    """Serve a dashboard from this process."""
    stop_event = threading.Event()
    server = dashboard.create_server()
    updates = threading.Thread(target=dashboard.refresh_until, args=(stop_event,))
    serving = threading.Thread(target=server.run)
    updates.start()
    serving.start()
    try:
        yield Server(None, server.effective_port, dashboard.url_of(server))
    finally:
        stop_event.set()
        server.trigger.pull_trigger(server.close)  # asyncore belongs to the thread that runs it
        server.task_dispatcher.shutdown()
        updates.join(30)
        serving.join(30)


@contextmanager
def start_dashboard(*args: Any, env: Mapping[str, str] = {}) -> Iterator[Server]:
    """Run `lesionsearch dashboard` on a free port; end it with SIGTERM."""
    process = subprocess.Popen(
        [COMMAND, "dashboard", *map(str, args), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    try:
        line = _read_first_line(process)
        match = re.search(r"http://\S+:(\d+)/", line)
        assert match, line + process.stderr.read()
        yield Server(process, int(match[1]), line)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


def _read_first_line(process: subprocess.Popen) -> str:
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
    return lines.get(timeout=START_TIMEOUT_S)
