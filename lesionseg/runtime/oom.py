"""Out-of-memory errors: recognise them, and process images in batches that fit.

The largest batch that fits cannot be computed beforehand: it depends on the network, the image
size, the library's choice of algorithms and other processes on the device. A batch that does not
fit is divided, and the size that did fit is used from then on.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")

#: Texts of plain RuntimeErrors that mean too little memory. cuDNN skips algorithms whose workspace
#: cannot be allocated and finally finds no engine; the text is the same for a convolution that it
#: does not support at all, which then fails for a single image too.
OOM_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory of the device or the host was exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in OOM_MESSAGES)


def run_unless_oom(function: Callable[[], T], device: torch.device) -> T | None:
    """Return the function's result, or None and free its memory if it ran out of memory."""
    try:
        return function()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the error references its frames, and these the tensors.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


class AdaptiveBatcher:
    """Processes images in batches that fit into memory.

    batch_size: initial batch size, at least 1; halved whenever a batch does not fit.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size, self._device = batch_size, device

    def __call__(self, n: int, function: Callable[[slice], T]) -> Iterator[T]:
        """Yield the function's result for each batch of n images, in order.

        Args:
            n: number of images.
            function: computes the batch at a slice of 0 .. n - 1; must not return None.

        Raises:
            RuntimeError: a single image does not fit (torch's own error).
        """
        start = 0
        while start < n:
            part = slice(start, min(n, start + self.batch_size))
            images = part.stop - part.start
            if images == 1:  # cannot be divided: let the error pass
                result: T | None = function(part)
            else:
                result = run_unless_oom(partial(function, part), self._device)
            if result is None:
                self.batch_size = (images + 1) // 2
            else:
                start = part.stop
                yield result
