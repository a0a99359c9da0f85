"""Handling of SIGINT, SIGTERM and signals like them."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class SignalHandler:
    """Treats SIGINT, SIGTERM and ``others`` alike: sets ``stop_event``, raises KeyboardInterrupt.

    Within ``deferred`` the exception is raised only at the end, so that work that checks
    ``stop_event`` can save its state first. A second signal has no effect.
    """

    def __init__(self, *others: signal.Signals) -> None:
        self.numbers = (signal.SIGINT, signal.SIGTERM, *others)
        self.stop_event = threading.Event()
        self.signal_number: int | None = None
        self._is_deferred = False

    @contextmanager
    def installed(self) -> Iterator[SignalHandler]:
        """Handle the signals here; restore the previous handlers at the end."""
        previous = {number: signal.signal(number, self._handle) for number in self.numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only set ``stop_event`` on a signal; raise KeyboardInterrupt at the end."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.signal_number is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            return
        self.signal_number = number
        # In another thread: the signal may have interrupted a wait, which holds the event's lock
        # in this one. threading.Thread.start takes locks too.
        _thread.start_new_thread(self.stop_event.set, ())
        if not self._is_deferred:
            raise KeyboardInterrupt
