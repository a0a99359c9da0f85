"""Handling of failed writes to standard output and error: full disk, closed pipe or terminal.

Failed output must not stop a training: within ``tolerant_output`` it is dropped. For commands whose
result is their output, ``guarded_output`` raises OutputFailed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class OutputFailed(Exception):
    """Standard output cannot be written to; its cause is the OSError."""


class GuardedStream:
    """A text stream whose writes raise OutputFailed, or are dropped, instead of raising OSError.

    is_tolerant: whether they are dropped.
    """

    def __init__(self, stream: TextIO, *, is_tolerant: bool) -> None:
        self.stream, self.is_tolerant = stream, is_tolerant

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stream)

    def write(self, text: str) -> int:
        return self._try(lambda: self.stream.write(text)) or len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self._try(lambda: self.stream.writelines(lines))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def discard_unwritten(self) -> None:
        """Flush; where that fails, send everything from now on to the null device.

        Otherwise the interpreter's flush at exit would fail and change the exit code.
        """
        try:
            self.stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)
                self.stream.flush()

    def _try(self, operation: Callable[[], Any]) -> Any:
        try:
            return operation()
        except OSError as error:
            if self.is_tolerant:
                return None
            raise OutputFailed(f"standard output: {error.strerror or error}") from error


@contextmanager
def guarded_output() -> Iterator[None]:
    """Guard both streams; standard output raises OutputFailed outside of ``tolerant_output``."""
    with _replaced_streams(is_tolerant=False):
        yield


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Drop what cannot be written to standard output and error; usable as a decorator."""
    with _replaced_streams(is_tolerant=True):
        yield


@contextmanager
def _replaced_streams(*, is_tolerant: bool) -> Iterator[None]:
    _open_standard_files()
    previous = sys.stdout, sys.stderr
    streams = (
        GuardedStream(_unguarded(sys.stdout), is_tolerant=is_tolerant),
        GuardedStream(_unguarded(sys.stderr), is_tolerant=True),
    )
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", streams)
    try:
        yield
    finally:
        for stream in streams:
            stream.discard_unwritten()
        sys.stdout, sys.stderr = previous


def _unguarded(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, GuardedStream) else stream


def _open_standard_files() -> None:
    """Open the null device in place of standard files that are closed, as after ``>&-``.

    Otherwise the next opened file, such as a database, would receive the output of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # os.open returns the lowest free descriptor, which is this number.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
