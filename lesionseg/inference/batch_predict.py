"""Many pictures through one network: read ahead and finished behind it, in threads.

Whatever the number of pictures, few are in memory: at most LAPS batches before the network and as
many behind it, as the small squares that it takes; and of those at full size as many as ROOM
allows, or a single one that is larger.
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

from lesionseg.data.image_io import Pixels, enough, open_picture, read_image_and_size, squeeze
from lesionseg.errors import InputError
from lesionseg.inference.mask_stats import Probability
from lesionseg.inference.predictor import Segmenter

T = TypeVar("T")
S = TypeVar("S")

#: Batches that are read ahead, and that wait to be finished.
PREFETCH_BATCHES = 2
#: Pixels of pictures that are at full size at one time: at 15 bytes each, half a gigabyte.
FULL_SIZE_PIXELS = 2**25
#: Pixels in a batch where nothing else is said, and its most images: 16 at 256 pixels.
BATCH_PIXELS, BATCH = 2**20, 16


@dataclass(frozen=True)
class LoadedPicture:
    """One picture, read.

    path: its file. small: uint8 [S, S, 3], as the network sees it. shape: its height and width.
    view: RGB within the side that was asked for, to draw on; None where none was.
    """

    path: Path
    small: Pixels
    shape: tuple[int, int]
    view: Pixels | None


class PixelBudget:
    """Lets in work of a certain size while there is room; what is larger than all of it, alone."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._changed = size, 0, threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Waits for room of this size and takes it, while entered."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


def predict_files(
    segmenter: Segmenter,
    paths: Iterable[Path],
    use: Callable[[LoadedPicture, Probability], T],
    *,
    view: int = 0,
    batch_size: int | None = None,
    threads: int = 2,
) -> Generator[T | InputError, None, None]:
    """What ``use`` makes of each picture, in order; the error of one that cannot be used.

    Who leaves before the end closes it: that waits for what the threads have begun.

    Args:
        segmenter: its network runs in the caller's thread.
        paths: files of pictures.
        use: called in a thread with a picture and its probabilities [S, S]. An InputError of it
            is the picture's; anything else ends the stream.
        view: the longest side in pixels of the picture to draw on; 0 for none.
        batch_size: images per pass; by default BATCH_PIXELS at the network's size.
        threads: threads that read and finish.
    """
    size = batch_size or default_batch_size(segmenter.image_size)
    room = PixelBudget(FULL_SIZE_PIXELS)

    def read(path: Path) -> LoadedPicture | InputError:
        try:
            with room.reserve(_pixels(path)):
                return _read(path, segmenter.image_size, view)
        except InputError as error:
            return error
        except MemoryError:
            return InputError(f"{path}: too large for the memory that is left; scale it down")

    def to_mask(picture: LoadedPicture, probability: Probability) -> T | InputError:
        try:
            with room.reserve(picture.shape[0] * picture.shape[1]):
                return use(picture, probability)
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[T | InputError]] = deque()
    try:
        read_ahead = prefetch(pool, read, paths, PREFETCH_BATCHES * size)
        while batch := list(islice(read_ahead, size)):
            good = [each for each in batch if isinstance(each, LoadedPicture)]
            found = iter(segmenter.probabilities(np.stack([t.small for t in good])) if good else ())
            for each in batch:
                if isinstance(each, LoadedPicture):
                    waiting.append(pool.submit(to_mask, each, next(found)))
                else:
                    waiting.append(_done(each))
            while len(waiting) > PREFETCH_BATCHES * size:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prefetch(
    pool: ThreadPoolExecutor, work: Callable[[S], T], items: Iterable[S], n: int
) -> Iterator[T]:
    """The results of ``work`` in the items' order, with ``n`` items begun ahead of their use."""
    begun: deque[Future[T]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > n:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def default_batch_size(image_size: int) -> int:
    """Images per pass of a network of this size where nothing else is said; 1 or more."""
    return max(1, min(BATCH, BATCH_PIXELS // image_size**2))


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _pixels(path: Path) -> int:
    with open_picture(path) as picture:
        return picture.width * picture.height


def _read(path: Path, size: int, view: int) -> LoadedPicture:
    # As when the network was trained, so that it sees the very same pixels.
    image, shape = read_image_and_size(path, draft=enough(size))
    small = squeeze(image, size)
    return LoadedPicture(path, small, shape, _view(path, image, shape, view) if view else None)


def _view(path: Path, image: Image.Image, shape: tuple[int, int], side: int) -> Pixels:
    if max(image.size) < min(side, max(shape)):  # decoded for a network of few pixels
        image, _ = read_image_and_size(path, draft=side)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)
