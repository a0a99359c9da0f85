"""What whoever works on a study needs: a slot, weights, signals, a clock, a way to fail."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class SignalHandler:
    """SIGINT and SIGTERM as this process takes them, while entered.

    Each sets ``stopping``. Outside of ``held`` it is also raised as KeyboardInterrupt, at once;
    within, whoever works there sees ``stopping`` and puts the work down in its own time, and the
    interrupt is raised at the end. A second signal changes nothing more.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.number: int | None = None
        self._held = False

    @contextmanager
    def taken(self) -> Iterator[SignalHandler]:
        """Within it, the signals come here."""
        known = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self._hear) for each in known}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it, a signal only sets ``stopping``."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.stopping.is_set():
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.stopping.is_set():
            return
        self.number = number
        self.stopping.set()
        if not self._held:
            raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within it, SIGTERM does what Ctrl-C does, and a second of either changes nothing more."""
    with SignalHandler().taken():
        yield
