"""Predict many image files: threads read ahead of the network and process its output.

Memory is limited for any number of images: PREFETCH_BATCHES batches of network inputs before and
after the network, and FULL_SIZE_PIXELS pixels of images at full size, or one larger image.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from lesionseg.data.image_io import (
    Pixels,
    open_image,
    read_image_and_size,
    resize_square,
)
from lesionseg.errors import InputError
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.tta import NetworkOutput

T = TypeVar("T")
S = TypeVar("S")

#: Batches that are read ahead, and that wait to be processed.
PREFETCH_BATCHES = 2
#: Limit on the pixels of images that are at full size at one time: half a gigabyte, 15 bytes each,
#: 20 for an ensemble.
FULL_SIZE_PIXELS = 2**25
#: Limits of the default batch size: pixels and images; 16 images at 256 px.
BATCH_PIXELS, MAX_BATCH_SIZE = 2**20, 16


@dataclass(frozen=True)
class LoadedImage:
    """An image that was read from a file.

    resized: uint8 [S, S, 3], the network's input.
    shape: height and width of the image.
    preview: RGB within the requested side, to draw on; None if none was requested.
    """

    path: Path
    resized: Pixels
    shape: tuple[int, int]
    preview: Pixels | None


class PixelBudget:
    """Limits the pixels that threads process at one time; an image above the limit runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + pixels <= self._limit)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def predict_files(
    segmenter: Segmenter,
    paths: Iterable[Path],
    process: Callable[[LoadedImage, NetworkOutput], T],
    *,
    preview_px: int = 0,
    batch_size: int | None = None,
    threads: int = 2,
) -> Generator[T | InputError, None, None]:
    """Yield the result of ``process`` for each image in order, or the error of an unusable one.

    Closing the generator early waits for the work that the threads have begun.

    Args:
        segmenter: its network runs in the caller's thread.
        paths: image files.
        process: called in a thread with an image and the network's output. An InputError
            is yielded as the image's error; other exceptions are raised.
        preview_px: longest side of the preview in pixels; 0 for none.
        batch_size: images per forward pass; by default ``default_batch_size``.
        threads: number of threads that read and process images.
    """
    size = batch_size or default_batch_size(segmenter.image_size)
    budget = PixelBudget(FULL_SIZE_PIXELS)

    def read(path: Path) -> LoadedImage | InputError:
        try:
            with open_image(path) as image:
                pixels = image.width * image.height
            with budget.reserve(pixels):
                return _read(path, segmenter.image_size, preview_px)
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"{path}: too large for the available memory; scale it down")

    def predict(
        loaded: Iterator[LoadedImage | InputError],
    ) -> Iterator[tuple[LoadedImage, NetworkOutput] | InputError]:
        while batch := list(islice(loaded, size)):
            inputs = [item.resized for item in batch if isinstance(item, LoadedImage)]
            outputs = iter(segmenter.predict_outputs(np.stack(inputs)) if inputs else ())
            for item in batch:
                yield item if isinstance(item, InputError) else (item, next(outputs))

    def process_or_error(item: tuple[LoadedImage, NetworkOutput] | InputError) -> T | InputError:
        if isinstance(item, InputError):
            return item
        try:
            with budget.reserve(item[0].shape[0] * item[0].shape[1]):
                return process(*item)
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(threads)
    try:
        loaded = prefetch(pool, read, paths, PREFETCH_BATCHES * size)
        yield from prefetch(pool, process_or_error, predict(loaded), PREFETCH_BATCHES * size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prefetch(
    pool: ThreadPoolExecutor, function: Callable[[S], T], items: Iterable[S], n: int
) -> Iterator[T]:
    """Yield the function's result for each item in order, computing up to ``n`` items ahead."""
    futures: deque[Future[T]] = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > n:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def default_batch_size(image_size: int) -> int:
    """Return the default number of images per forward pass, 1 or more."""
    return max(1, min(MAX_BATCH_SIZE, BATCH_PIXELS // image_size**2))


def _read(path: Path, size: int, preview_px: int) -> LoadedImage:
    # Decoded as for the cache, so that the network receives identical pixels.
    image, shape = read_image_and_size(path, size)
    resized = resize_square(image, size)
    if not preview_px:
        return LoadedImage(path, resized, shape, None)
    if max(image.size) < min(preview_px, max(shape)):  # decoded at too low a resolution
        image, _ = read_image_and_size(path, preview_px)
    image.thumbnail((preview_px, preview_px), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return LoadedImage(path, resized, shape, np.asarray(image))
