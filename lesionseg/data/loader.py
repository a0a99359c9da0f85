"""Batches: what one epoch feeds to the network.

The order of an epoch and the random changes of a batch follow from (seed, epoch, step) alone.
So they do not depend on how many processes prepare them, no process repeats another's, and no
epoch repeats the last: the trap of generators that are copied at fork.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lesionseg.augment import reseed
from lesionseg.augment.host import apply_pipeline
from lesionseg.data.cache import Cache

Batch = tuple[Tensor, Tensor]

#: The mean and deviation of ImageNet's pixels, which pretrained encoders expect; RGB, of 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

#: How loaders are started; None, elsewhere than on Linux, for what is usual there. A training of a
#: study comes from a fork server, and by itself would start another, whose loaders each import
#: torch anew: seconds of all cores. A fork is safe after CUDA was started too, as long as what was
#: forked leaves CUDA alone: data sets for loaders are numpy throughout.
LINUX = sys.platform == "linux"
START = "fork" if LINUX else None


@dataclass(frozen=True)
class BatchKey:
    """Which batch: its place in the training and the cache positions in it."""

    epoch: int
    step: int
    members: tuple[int, ...]


class BatchDataset(Dataset[Batch]):
    """Gives a whole batch for a Key: images uint8 [N, S, S, 3] and masks uint8 [N, S, S]."""

    def __init__(self, cache: Cache, augment: A.Compose | None, seed: int) -> None:
        self.cache, self.augment, self.seed = cache, augment, seed

    def __getitem__(self, key: BatchKey) -> Batch:
        members = np.asarray(key.members)
        images, masks = self.cache.images[members], self.cache.masks[members]
        if self.augment is not None and self.augment.transforms:
            # OpenCV's own threads would fight those of the training for the same cores.
            cv2.setNumThreads(0)
            reseed(self.augment, batch_seed(self.seed, key.epoch, key.step))
            for i in range(len(members)):
                images[i], masks[i] = apply_pipeline(self.augment, images[i], masks[i])
        return torch.from_numpy(images), torch.from_numpy(masks)


class EpochSampler(Sampler[BatchKey]):
    """The keys of one epoch from step ``start`` on: a fresh order of the members, in batches.

    A last batch that is not full is dropped, unless it is the only one: batch norm over one or
    two images would spoil the running statistics.
    """

    def __init__(self, members: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.members, self.batch_size, self.seed = members, batch_size, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """The steps of a whole epoch, wherever it starts."""
        return max(1, len(self.members) // self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.members[rng.permutation(len(self.members))]
        for step in range(self.start, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield BatchKey(self.epoch, step, tuple(int(i) for i in chosen))


def batch_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of one batch's random changes."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])


class PrefetchLoader:
    """What a data set gives for the keys of a plan, each made by a thread one ahead.

    OpenCV and torch let go of the interpreter while they compute, so that a thread is all it
    takes, and nothing is copied or sent. On cores that are all busy an image costs what it costs
    in processor time, but the training's own threads no longer stand still meanwhile.
    """

    def __init__(self, dataset: Dataset[Any], plan: EpochSampler) -> None:
        self.dataset, self.plan = dataset, plan

    def __iter__(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1, "batches") as pool:
            ahead = None
            for key in self.plan:
                ready, ahead = ahead, pool.submit(self.dataset.__getitem__, key)
                if ready is not None:
                    yield ready.result()
            if ahead is not None:
                yield ahead.result()


def make_train_loader(
    dataset: Dataset[Any],
    members: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    workers: int = 0,
    pin: bool = False,
) -> tuple[Iterable[Any], EpochSampler]:
    """A loader of what the data set gives for the keys of a training, and their plan.

    The plan's ``epoch`` is to be set before each, and its ``start``, the step to begin at, to go
    on within one. Without workers, which are processes, a thread prepares the batches.
    """
    plan = EpochSampler(members, batch_size, seed)
    if not workers:
        return PrefetchLoader(dataset, plan), plan
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=pin,
        multiprocessing_context=START,
        worker_init_fn=_init_worker if LINUX else None,
        # Its own: it draws once an epoch, which would shift what the network draws.
        generator=torch.Generator().manual_seed(seed),
    )
    return loader, plan


#: Linux's prctl: the signal that a process gets when the thread that forked it ends.
_PDEATHSIG = 1


def _init_worker(number: int) -> None:
    """What a loader's process does first: from here on it ends with its training, and not before.

    A signal to a training's whole group, as schedulers send it, is for the training to answer: it
    saves its state, and must not find its loaders dead meanwhile.
    """
    # What came with the fork is the training's to tidy up: tensors on a device among it.
    gc.freeze()
    # OpenCV's threads did not come along, and would fight those of the training for its cores.
    cv2.setNumThreads(0)
    # An orphan would keep the device's memory and the training's pipes open for seconds.
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    training = multiprocessing.parent_process()
    if training is None or os.getppid() != training.pid:  # it ended before
        os._exit(0)
    # Not ignored: it is how multiprocessing ends loaders when a program exits, and waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm, args=(training.pid,), daemon=True).start()


def _exit_on_sigterm(training: int | None) -> None:
    """Ends this process at a SIGTERM of the training's own; anybody else's is dropped."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training:
        pass
    os._exit(0)


def transfer_batches(
    batches: Iterable[Any], bring: Callable[[Any], Batch], device: torch.device
) -> Iterator[Batch]:
    """Each batch as ``bring`` puts it on the device.

    On CUDA that is done on a stream of its own: a step is queued before it is computed, so that the
    next batch travels, and is augmented, while it is.
    """
    if device.type != "cuda":
        yield from map(bring, batches)
        return
    aside = _transfer_stream(device)
    training = torch.cuda.current_stream(device)
    aside.wait_stream(training)  # for what lies there already
    for batch in batches:
        with torch.cuda.stream(aside):
            images, masks = bring(batch)
        training.wait_stream(aside)
        for tensor in (images, masks):
            tensor.record_stream(training)  # else its memory would be given away under the step
        yield images, masks


@lru_cache
def _transfer_stream(device: torch.device) -> torch.cuda.Stream:
    # One for all epochs: memory once used on a stream is kept for that stream alone.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def iterate_batches(cache: Cache, members: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
    """All members once, in order and unchanged: images uint8 [N, S, S, 3], masks [N, S, S]."""
    for start in range(0, len(members), batch_size):
        chosen = members[start : start + batch_size]
        yield torch.from_numpy(cache.images[chosen]), torch.from_numpy(cache.masks[chosen])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Normalised images [N, 3, S, S], channels last in memory, and float masks [N, 1, S, S].

    Bytes travel, not floats: a quarter of the traffic; normalising is the device's work.
    """
    images, masks = (t.to(device, non_blocking=True) for t in batch)
    return normalise(images), masks.unsqueeze(1).float()


def normalise(images: Tensor) -> Tensor:
    """[N, H, W, 3] in [0, 255] to float [N, 3, H, W] of about zero mean, channels last."""
    mean, std = _statistics(images.device, images.shape[2])
    # Whole rows at once, each value beside its own mean: over the three values of one pixel
    # torch takes five times as long on a CPU.
    rows = images.flatten(2)
    found = (rows.float() - mean).div_(std).reshape(images.shape)
    # The permuted view of [N, H, W, C] is what torch calls channels last: no copy is needed.
    return found.permute(0, 3, 1, 2)


@lru_cache
def _statistics(device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    # Kept, because making them anew would wait for the device at every step.
    return (
        torch.tensor(MEAN, device=device).repeat(width),
        torch.tensor(STD, device=device).repeat(width),
    )
