"""Images that lie on the device, and batches of which only the plan travels.

Where a GPU trains faster than the host's cores can augment, they are the bottleneck. As bytes a
data set is small beside a GPU's memory (3,000 images of 256 x 256 and their masks are 0.8 GB), so
it is brought there once; each batch is gathered there and changed there, by
``lesionseg.augment.batched``, from the same draws that the host would have made.
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
from lesionseg.augment.batched import PackedPlan, apply_plan, draw_plan, is_batchable, pack_plan, unpack_plan
from lesionseg.data.cache import Cache
from lesionseg.data.loader import Batch, BatchKey, batch_seed, normalise
from lesionseg.errors import InputError
from lesionseg.runtime.env import AUGMENT, read_env_option

#: The most of the device's free memory that images may take; the rest is the training's.
MAX_MEMORY_SHARE = 0.25
#: Images brought to the device at once.
UPLOAD_CHUNK = 256


def choose_augment_device(
    pipeline: A.Compose, image_size: int, images: int, device: torch.device
) -> Literal["host", "device"]:
    """Who augments, as LESIONSEARCH_AUGMENT says, or by itself.

    By itself the device does on CUDA, if the images take no more than a quarter of the memory
    that is free; on a CPU albumentations does, which takes a third of the time of torch there.
    Raises InputError where the variable says something else, or where the device cannot.
    """
    asked = read_env_option(AUGMENT)
    if asked == "device" and not is_batchable(pipeline):
        raise InputError(f"{AUGMENT}: this augmentation runs on the host only; unset it")
    if asked == "host" or not is_batchable(pipeline):
        return "host"
    fits = device.type == "cuda" and images * image_size**2 * 4 <= MAX_MEMORY_SHARE * _free(device)
    return "device" if fits or asked == "device" else "host"


def _free(device: torch.device) -> int:
    """Bytes that this process may still take: of the device's, and of its share of them."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device) * total
    return int(min(free, share - torch.cuda.memory_reserved(device)))


class DeviceCache:
    """Members of a cache on a device: uint8 [M, S, S, 3] and their masks [M, S, S].

    Raises whatever torch does where the device's memory is short.
    """

    def __init__(self, cache: Cache, members: NDArray[np.int64], device: torch.device) -> None:
        self.members = np.unique(members)
        size = cache.images.shape[1]
        self.images = torch.empty(
            len(self.members), size, size, 3, dtype=torch.uint8, device=device
        )
        self.masks = torch.empty(len(self.members), size, size, dtype=torch.uint8, device=device)
        for start in range(0, len(self.members), UPLOAD_CHUNK):
            few = self.members[start : start + UPLOAD_CHUNK]
            rows = slice(start, start + len(few))
            self.images[rows] = torch.from_numpy(cache.images[few]).to(device)
            self.masks[rows] = torch.from_numpy(cache.masks[few]).to(device)

    def rows(self, members: NDArray[np.int64]) -> Tensor:
        """Where members of the cache lie here, int64 on the host."""
        return torch.from_numpy(np.searchsorted(self.members, members))

    def batch(self, packed: PackedPlan) -> Batch:
        """A planned batch, augmented and normalised, as ``to_device`` gives one."""
        content = packed.content.to(self.images.device, non_blocking=True)
        rows, plan = unpack_plan(PackedPlan(content, packed.layout))
        images, masks = apply_plan(plan, self.images[rows], self.masks[rows])
        return normalise(images), masks.unsqueeze(1).float()


class PlanDataset(Dataset[PackedPlan]):
    """Gives for a Key the plan of the batch that ``BatchDataset`` would make of it.

    Its rows are those of the Resident.
    """

    def __init__(self, resident: DeviceCache, pipeline: A.Compose, seed: int) -> None:
        # Not the resident itself: what lies on a device cannot go to a helper.
        self.members, self.size = resident.members, resident.images.shape[1]
        self.pipeline, self.seed = pipeline, seed

    def __getitem__(self, key: BatchKey) -> PackedPlan:
        reseed(self.pipeline, batch_seed(self.seed, key.epoch, key.step))
        rows = np.searchsorted(self.members, np.asarray(key.members))
        return pack_plan(torch.from_numpy(rows), draw_plan(self.pipeline, len(rows), self.size))
