"""Handling of the signals that end a process: SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: SIGTERM: sent by service managers and schedulers. SIGHUP: sent when a terminal is closed.
TERMINATING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def blocked_in_children() -> Iterator[None]:
    """Block the TERMINATING signals in processes that are started within the context.

    Signals that this process receives meanwhile are delivered later or in another thread.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class SignalHandler:
    """Treats SIGINT, SIGTERM, SIGHUP and ``others`` alike: sets ``stop_event`` and interrupts.

    The interrupt is KeyboardInterrupt. Within ``deferred`` it is raised only at the end, so that
    work that checks ``stop_event`` can save its state first. A second signal has no effect. SIGHUP
    is not handled if it is ignored, as under nohup.
    """

    def __init__(self, *others: signal.Signals) -> None:
        self.numbers = (signal.SIGINT, *TERMINATING, *others)
        self.stop_event = threading.Event()
        self.signal_number: int | None = None
        self._is_deferred = False

    @contextmanager
    def installed(self) -> Iterator[SignalHandler]:
        """Handle the signals here; restore the previous handlers at the end."""
        is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [n for n in self.numbers if n != signal.SIGHUP or not is_nohup]
        previous = {number: signal.signal(number, self._handle) for number in numbers}
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
