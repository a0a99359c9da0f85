"""A TCP proxy for a database server that can reset or stall connections."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading


class NetworkProxy:
    """Forwards connections to a server on this host.

    ``cut`` resets connections and refuses new ones until ``heal``; ``stall`` forwards no data
    until ``heal``, as a network without a route.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._flowing = threading.Event()
        self._flowing.set()
        self._is_cut = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, share: float, rng: random.Random) -> None:
        """Reset about this share of the connections; refuse new ones if it is 1."""
        self._is_cut = share == 1
        for pair in list(self._pairs):
            if rng.random() < share:
                self._reset(pair)

    def stall(self) -> None:
        """Forward no data."""
        self._flowing.clear()

    def heal(self) -> None:
        """Forward data and accept connections again."""
        self._is_cut = False
        self._flowing.set()

    def close(self) -> None:
        """Accept no more connections and reset the present ones."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listening.close()
        self.heal()
        for pair in list(self._pairs):
            self._reset(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._is_cut:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self._server_port), timeout=5)
                server.settimeout(None)
            except OSError:
                _close_with_reset(client)
                continue
            pair = client, server
            self._pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(
                    target=self._pass_on, args=(pair, source, target), daemon=True
                ).start()

    def _pass_on(
        self,
        pair: tuple[socket.socket, socket.socket],
        source: socket.socket,
        target: socket.socket,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        self._reset(pair)

    def _reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            _close_with_reset(end)


def _close_with_reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the other thread's recv()
    end.close()
