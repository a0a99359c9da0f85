"""Training and validation batches.

The order of an epoch and the augmentation of a batch depend on (seed, epoch, step) alone: not on
the number of processes that prepare batches, nor on where a training was resumed.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lesionseg.augment import reseed  # before albumentations, whose environment it sets
from lesionseg.data.cache import Cache

if TYPE_CHECKING:
    import albumentations as A

Batch = tuple[Tensor, Tensor]

#: ImageNet's mean and standard deviation, RGB in [0, 255].
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

LINUX = sys.platform == "linux"
#: How loader processes are started; None for the platform's default. A trial process comes from a
#: fork server, and would by default start another one, whose loaders import torch again: seconds
#: of all cores. Forking after CUDA was initialised is safe because loaders use NumPy only.
START_METHOD = "fork" if LINUX else None


@dataclass(frozen=True)
class BatchKey:
    """A batch of a training: its epoch, its step, and the cache positions of its images."""

    epoch: int
    step: int
    members: tuple[int, ...]


class BatchDataset(Dataset[Batch]):
    """Augmented batches by BatchKey: images uint8 [N, S, S, 3], masks uint8 [N, S, S]."""

    def __init__(self, cache: Cache, augment: A.Compose | None, seed: int) -> None:
        self.cache, self.augment, self.seed = cache, augment, seed

    def __getitem__(self, key: BatchKey) -> Batch:
        members = np.asarray(key.members)
        images, masks = self.cache.images[members], self.cache.masks[members]
        if self.augment is not None and self.augment.transforms:
            # OpenCV's threads would compete with those of the training.
            cv2.setNumThreads(0)
            reseed(self.augment, batch_seed(self.seed, key.epoch, key.step))
            for i in range(len(members)):
                changed = self.augment(image=images[i], mask=masks[i])
                images[i], masks[i] = changed["image"], changed["mask"]
        return torch.from_numpy(images), torch.from_numpy(masks)


class EpochSampler(Sampler[BatchKey]):
    """The shuffled batches of one epoch, from step ``start`` on.

    An incomplete last batch is dropped unless it is the only one, because batch norm over one or
    two images distorts the running statistics.
    """

    def __init__(self, members: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.members, self.batch_size, self.seed = members, batch_size, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Return the number of steps of a whole epoch."""
        return max(1, len(self.members) // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.members[rng.permutation(len(self.members))]
        for step in range(self.start, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield BatchKey(self.epoch, step, tuple(int(i) for i in batch))


def batch_seed(seed: int, epoch: int, step: int) -> int:
    """Return the random seed of the augmentation of one batch."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])


@dataclass(frozen=True)
class PrefetchLoader:
    """Loads batches in a thread, one ahead.

    A thread suffices, without copies between processes, because OpenCV and torch release the GIL.
    """

    dataset: Dataset[Any]
    sampler: EpochSampler

    def __iter__(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1, "batches") as pool:
            pending = None
            for key in self.sampler:
                ready, pending = pending, pool.submit(self.dataset.__getitem__, key)
                if ready is not None:
                    yield ready.result()
            if pending is not None:
                yield pending.result()


def make_train_loader(
    dataset: Dataset[Any],
    members: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    workers: int = 0,
    pin: bool = False,
) -> tuple[Iterable[Any], EpochSampler]:
    """Return a loader of training batches and its sampler.

    The sampler's ``epoch`` and ``start`` are to be set before each epoch. ``members`` are cache
    positions, [M]; ``seed`` determines their order. With no ``workers``, a thread loads batches;
    ``pin`` copies those of other processes to pinned memory.
    """
    sampler = EpochSampler(members, batch_size, seed)
    if not workers:
        return PrefetchLoader(dataset, sampler), sampler
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=pin,
        multiprocessing_context=START_METHOD,
        worker_init_fn=_init_worker if LINUX else None,
        # Drawing from the default generator once an epoch would change the network's dropout.
        generator=torch.Generator().manual_seed(seed),
    )
    return loader, sampler


def _init_worker(number: int) -> None:
    """Make a loader process end with its training, and not before.

    A scheduler sends SIGTERM to all processes of a training. The training then saves its state,
    for which its loaders must still run.
    """
    # Inherited objects, such as tensors on a device, are the training's to free.
    gc.freeze()
    # OpenCV's threads do not survive a fork, and would compete with those of the training.
    cv2.setNumThreads(0)
    # An orphaned process would keep the device's memory and the training's pipes for seconds.
    # Option 1 (PR_SET_PDEATHSIG): the signal that is sent when the thread that forked it ends.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    training = multiprocessing.parent_process()
    if training is None or os.getppid() != training.pid:  # it ended before prctl
        os._exit(0)
    # Blocked, not ignored: multiprocessing ends loaders by SIGTERM at exit and waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm, args=(training.pid,), daemon=True).start()


def _exit_on_sigterm(training_pid: int | None) -> None:
    """End this process at a SIGTERM from the training; ignore those of other processes."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training_pid:
        pass
    os._exit(0)


def iterate_batches(cache: Cache, members: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
    """Yield all members in order: images uint8 [N, S, S, 3], masks uint8 [N, S, S]."""
    for start in range(0, len(members), batch_size):
        batch = members[start : start + batch_size]
        yield torch.from_numpy(cache.images[batch]), torch.from_numpy(cache.masks[batch])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device and normalise it there; bytes are a quarter of the traffic.

    Images uint8 [N, S, S, 3] become float [N, 3, S, S], channels last in memory, and masks uint8
    [N, S, S] become float [N, 1, S, S].
    """
    images, masks = (t.to(device, non_blocking=True) for t in batch)
    return normalise(images), masks.unsqueeze(1).float()


def normalise(images: Tensor) -> Tensor:
    """Normalise images [N, H, W, 3] in [0, 255] to float [N, 3, H, W], channels last."""
    mean, std = _statistics(images.device, images.shape[2])
    # By whole rows: over the three values of a pixel torch takes five times as long on a CPU.
    normalised = (images.flatten(2).float() - mean).div_(std).reshape(images.shape)
    return normalised.permute(0, 3, 1, 2)  # a view: the memory is channels last already


@lru_cache
def _statistics(device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    # Cached, because creating them would wait for the device at every step.
    mean, std = torch.tensor([MEAN, STD], device=device).repeat(1, width)
    return mean, std
