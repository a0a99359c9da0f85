"""Augmentation on the device: the images are copied there once, then only plans of batches.

Where a GPU trains faster than the host can augment, the host is the bottleneck. 3,000 images of
256 x 256 and their masks take 0.8 GB as bytes. Each batch is gathered and augmented on the device
by ``lesionseg.augment.batched``, with the same random draws as on the host.
"""

from __future__ import annotations

from typing import Literal

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lesionseg.augment import reseed
from lesionseg.augment.batched.apply import apply_plan
from lesionseg.augment.batched.plan import (
    PackedPlan,
    draw_plan,
    is_batchable,
    pack_plan,
    unpack_plan,
)
from lesionseg.data.cache import Cache
from lesionseg.data.loader import Batch, BatchKey, batch_seed, normalise
from lesionseg.errors import InputError
from lesionseg.runtime.device import AUGMENT, read_augment_setting

#: Maximum share of the device's free memory for images.
MAX_MEMORY_SHARE = 0.25
#: Number of images copied to the device at once.
UPLOAD_CHUNK = 256


def choose_augment_device(
    pipeline: A.Compose, image_size: int, images: int, device: torch.device
) -> Literal["host", "device"]:
    """Return where to augment: as LESIONSEARCH_AUGMENT says, or automatically.

    Automatically, CUDA devices augment if the images fit into a quarter of the free memory. On a
    CPU, albumentations takes a third of the time of torch.

    Raises:
        InputError: the variable has another value, or the device does not support the pipeline.
    """
    setting = read_augment_setting()
    if setting == "device" and not is_batchable(pipeline):
        raise InputError(f"{AUGMENT}: this augmentation runs on the host only; unset it")
    if setting == "host" or not is_batchable(pipeline):
        return "host"
    if setting == "device":
        return "device"
    n_bytes = images * image_size**2 * 4
    fits = device.type == "cuda" and n_bytes <= MAX_MEMORY_SHARE * _free_bytes(device)
    return "device" if fits else "host"


def _free_bytes(device: torch.device) -> int:
    """Return the free memory of the device, or of this process's share of it if that is less."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device) * total
    return int(min(free, share - torch.cuda.memory_reserved(device)))


class DeviceCache:
    """Images of a cache on a device: uint8 [M, S, S, 3], and their masks, uint8 [M, S, S].

    ``members`` are cache positions, [M]. torch raises its own errors if the memory does not
    suffice.
    """

    def __init__(self, cache: Cache, members: NDArray[np.int64], device: torch.device) -> None:
        self.members = np.unique(members)
        m, size = len(self.members), cache.images.shape[1]
        self.images = torch.empty(m, size, size, 3, dtype=torch.uint8, device=device)
        self.masks = torch.empty(m, size, size, dtype=torch.uint8, device=device)
        for start in range(0, m, UPLOAD_CHUNK):
            chunk = self.members[start : start + UPLOAD_CHUNK]
            target = slice(start, start + len(chunk))
            self.images[target] = torch.from_numpy(cache.images[chunk]).to(device)
            self.masks[target] = torch.from_numpy(cache.masks[chunk]).to(device)

    def positions(self, members: NDArray[np.int64]) -> Tensor:
        """Return the positions here of members of the cache, int64 on the host."""
        return torch.from_numpy(np.searchsorted(self.members, members))

    def make_batch(self, packed: PackedPlan) -> Batch:
        """Return a batch, augmented and normalised, in the format of ``to_device``."""
        content = packed.content.to(self.images.device, non_blocking=True)
        rows, plan = unpack_plan(packed._replace(content=content))
        images, masks = apply_plan(plan, self.images[rows], self.masks[rows])
        return normalise(images), masks.unsqueeze(1).float()


class PlanDataset(Dataset[PackedPlan]):
    """Plans by BatchKey of the batches that ``BatchDataset`` would return, for a DeviceCache."""

    def __init__(self, device_cache: DeviceCache, pipeline: A.Compose, seed: int) -> None:
        # Without the tensors, which cannot be sent to loader processes.
        self.members, self.size = device_cache.members, device_cache.images.shape[1]
        self.pipeline, self.seed = pipeline, seed

    def __getitem__(self, key: BatchKey) -> PackedPlan:
        reseed(self.pipeline, batch_seed(self.seed, key.epoch, key.step))
        rows = np.searchsorted(self.members, np.asarray(key.members))
        return pack_plan(torch.from_numpy(rows), draw_plan(self.pipeline, len(rows), self.size))
