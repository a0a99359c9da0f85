"""Batches: what one epoch feeds to the network.

The order of an epoch and the random changes of a batch follow from (seed, epoch, step) alone.
So they do not depend on how many processes prepare them, no process repeats another's, and no
epoch repeats the last: the trap of generators that are copied at fork.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lesionseg.augment import reseed
from lesionseg.data.cache import Cache

#: The mean and deviation of ImageNet's pixels, which pretrained encoders expect; RGB, of 255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Key:
    """Which batch: its place in the training and the cache positions in it."""

    epoch: int
    step: int
    members: tuple[int, ...]


class BatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Gives a whole batch for a Key: images uint8 [N, S, S, 3] and masks uint8 [N, S, S]."""

    def __init__(self, cache: Cache, augment: A.Compose | None, seed: int) -> None:
        self.cache, self.augment, self.seed = cache, augment, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        members = np.asarray(key.members)
        images, masks = self.cache.images[members], self.cache.masks[members]
        if self.augment is not None and self.augment.transforms:
            # OpenCV's own threads would fight those of the training for the same cores.
            cv2.setNumThreads(0)
            reseed(self.augment, batch_seed(self.seed, key.epoch, key.step))
            for i in range(len(members)):
                changed = self.augment(image=images[i], mask=masks[i])
                images[i], masks[i] = changed["image"], changed["mask"]
        return torch.from_numpy(images), torch.from_numpy(masks)


class EpochPlan(Sampler[Key]):
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

    def __iter__(self) -> Iterator[Key]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.members[rng.permutation(len(self.members))]
        for step in range(self.start, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield Key(self.epoch, step, tuple(int(i) for i in chosen))


def batch_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of one batch's random changes."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1)[0])


def train_loader(
    cache: Cache,
    members: NDArray[np.int64],
    batch_size: int,
    augment: A.Compose,
    *,
    seed: int,
    workers: int = 0,
    pin: bool = False,
) -> tuple[DataLoader[tuple[Tensor, Tensor]], EpochPlan]:
    """A loader of training batches, and its plan, whose ``epoch`` is to be set before each.

    The plan's ``start`` is the step to begin an epoch at, to go on within one.
    """
    plan = EpochPlan(members, batch_size, seed)
    loader = DataLoader(
        BatchDataset(cache, augment, seed),
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        # Its own: it draws once an epoch, which would shift what the network draws.
        generator=torch.Generator().manual_seed(seed),
    )
    return loader, plan


def in_order(
    cache: Cache, members: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All members once, in order and unchanged: images uint8 [N, S, S, 3], masks [N, S, S]."""
    for start in range(0, len(members), batch_size):
        chosen = members[start : start + batch_size]
        yield torch.from_numpy(cache.images[chosen]), torch.from_numpy(cache.masks[chosen])


def to_device(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised images [N, 3, S, S], channels last in memory, and float masks [N, 1, S, S].

    Bytes travel, not floats: a quarter of the traffic; normalising is the device's work.
    """
    images, masks = (t.to(device, non_blocking=True) for t in batch)
    return normalise(images), masks.unsqueeze(1).float()


def normalise(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] of about zero mean; channels last in memory."""
    mean, std = _statistics(images.device)
    # The permuted view of [N, H, W, C] is what torch calls channels last: no copy is needed.
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because making them anew would wait for the device at every step.
    return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
