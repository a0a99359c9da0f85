"""TrainBatches: the augmented and mixed batches of each epoch, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lesionseg.augment import build_augment
from lesionseg.augment.mix import build_mix
from lesionseg.config import TrialConfig
from lesionseg.data.device_cache import DeviceCache, PlanDataset, choose_augment_device
from lesionseg.data.loader import (
    Batch,
    BatchDataset,
    make_train_loader,
    to_device,
    transfer_batches,
)
from lesionseg.runtime.device import loader_workers
from lesionseg.runtime.oom import run_unless_oom
from lesionseg.training.types import TrainData


class TrainBatches:
    """Iterable over the batches of one epoch; ``start`` selects the epoch.

    plan: order of the images; ``plan.epoch`` is the current epoch.
    resident: the images on the device, if they are augmented there.
    rng: random generator of MixUp and CutMix.
    """

    def __init__(self, config: TrialConfig, data: TrainData, device: torch.device) -> None:
        self._seed, self._device = config.seed, device
        self._mix, self.rng = build_mix(config.mix), np.random.default_rng()
        pipeline, members = build_augment(config.augment), np.union1d(data.train, data.val)
        self.resident: DeviceCache | None = None
        if choose_augment_device(pipeline, config.image_size, len(members), device) == "device":
            # Other processes use the device: memory that was free may not be free any more.
            self.resident = run_unless_oom(lambda: DeviceCache(data.cache, members, device), device)
        dataset: Dataset[Any] = (
            PlanDataset(self.resident, pipeline, config.seed)
            if self.resident
            else BatchDataset(data.cache, pipeline, config.seed)
        )
        self._loader, self.plan = make_train_loader(
            dataset,
            data.train,
            config.batch_size,
            seed=config.seed,
            workers=loader_workers(device),
            pin=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.plan)

    def start(self, epoch: int, step: int) -> None:
        """Continue in ``epoch`` after ``step`` steps."""
        self.plan.epoch, self.plan.start = epoch, step
        if not step:
            # A stream of its own: order and augmentation do not depend on the mix.
            self.rng = np.random.default_rng([self._seed, epoch, 1])

    def __iter__(self) -> Iterator[Batch]:
        transfer = (
            self.resident.make_batch if self.resident else partial(to_device, device=self._device)
        )
        for images, masks in transfer_batches(self._loader, transfer, self._device):
            yield self._mix(images, masks, self.rng) if self._mix else (images, masks)
