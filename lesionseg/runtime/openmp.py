"""limit_spinning(): how long OpenMP threads wait actively."""

from __future__ import annotations

import os

#: Repetitions of a waiting loop before a thread sleeps, about 10 microseconds.
SPIN_COUNT = 1000


def limit_spinning() -> None:
    """Let waiting OpenMP threads spin briefly, then sleep.

    To be called before torch is imported. Variables that the user has set take precedence.

    A training step has hundreds of parallel parts. Threads that sleep after each part have to be
    woken for the next one, which cost up to half of the speed with two threads. Threads that
    spin for long, as libgomp lets them, make a training several times slower where it shares its
    cores (bench/results/overhead.md).
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for other libraries than libgomp
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
