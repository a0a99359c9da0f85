"""When memory is short: how that is told, and how many images are computed on at once then.

Nobody can say beforehand how large a batch fits: that depends on the network, the size, the
library's choice of algorithms, and on who else computes there. So it is tried: what does not fit
is done again in smaller parts, and the size that did fit is remembered.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

#: How torch, and libraries under it, tell of too little memory in a plain RuntimeError. Algorithms
#: of cuDNN whose workspace cannot be had are passed over; where none is left, no engine is found.
#: Of a convolution that it cannot do at all it says the same, down to a single image.
OOM_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, the device's or the host's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(told in str(error) for told in OOM_MESSAGES)


def run_unless_oom(work: Callable[[], T], device: torch.device) -> T | None:
    """What the work gives; None, and what it had taken is free again, if memory was short.

    None too where the work itself gives None; what it gives should be something else.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Out here, because an error holds the frames that it went through, and they the tensors.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


class AdaptiveBatcher:
    """Works through many images, as many at once as fit.

    most: images at once to begin with, at least 1; halved each time that memory is short.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self.most, self.device = most, device

    def __call__(self, n: int, work: Callable[[slice], T]) -> Iterator[T]:
        """What ``work`` gives for each portion of n images, in order.

        Raises whatever torch does where a single image does not fit.
        """
        start = 0
        while start < n:
            part = slice(start, min(n, start + self.most))
            found = self._done(work, part)
            if found is None:
                self.most = (part.stop - part.start + 1) // 2
                continue
            start = part.stop
            yield found

    def _done(self, work: Callable[[slice], T], part: slice) -> T | None:
        if part.stop - part.start == 1:  # cannot be halved: the error is the caller's
            return work(part)
        return run_unless_oom(lambda: work(part), self.device)
