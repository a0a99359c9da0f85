"""Whether memory that is freed goes back to the system at once, or stays for who asks next.

Torch asks for every activation anew on a CPU, and PIL for every picture. glibc gives large pieces
back as soon as they are freed, and the system hands them out again page by page, each filled with
zeros: a third of the time of a small U-Net's step at 256 pixels, a seventh of that of decoding
photographs. Elsewhere than with glibc nothing is done here.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: What glibc's mallopt calls them: at how much free memory some is given back, from which size on
#: pieces are asked of the system one by one, and how many of these there may be.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: As glibc sets them by itself once pieces of the largest size that it minds were freed.
_ORDINARY = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 2**16}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}

_lock = threading.Lock()
_keepers = 0


def retain_freed_memory() -> bool:
    """Keeps memory until this process ends; whether it does. For processes that train and end."""
    global _keepers
    with _lock:
        _keepers += 1  # nobody gives it back any more
        return _set(_KEEPING)


@contextmanager
def freed_memory_retained() -> Iterator[None]:
    """Keeps memory while entered, by any thread, and gives back what is free then."""
    global _keepers
    with _lock:
        _keepers += 1
        _set(_KEEPING)
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if not _keepers and _set(_ORDINARY):
                _glibc().malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    """Whether all could be set."""
    if sys.platform != "linux":
        return False
    try:
        set_option = _glibc().mallopt
    except (OSError, AttributeError):  # another C library
        return False
    done = [set_option(*option) for option in options.items()]
    return all(done)


def _glibc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
