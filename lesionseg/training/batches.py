"""TrainBatches: the augmented and mixed batches of each epoch, on the device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lesionseg.augment import build_augment
from lesionseg.augment.mix import build_mix
from lesionseg.config import TrialConfig
from lesionseg.data.loader import (
    Batch,
    BatchDataset,
    make_train_loader,
    to_device,
)
from lesionseg.runtime.device import loader_workers
from lesionseg.training.types import TrainData


class TrainBatches:
    """Iterable over the batches of one epoch; ``start`` selects the epoch.

    plan: order of the images; ``plan.epoch`` is the current epoch.
    rng: random generator of MixUp and CutMix.
    """

    def __init__(self, config: TrialConfig, data: TrainData, device: torch.device) -> None:
        self._seed, self._device = config.seed, device
        self._mix, self.rng = build_mix(config.mix), np.random.default_rng()
        dataset = BatchDataset(data.cache, build_augment(config.augment), config.seed)
        batch_bytes = config.batch_size * config.image_size**2 * 4
        self._loader, self.plan = make_train_loader(
            dataset,
            data.train,
            config.batch_size,
            seed=config.seed,
            workers=loader_workers(device, batch_bytes),
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
        for batch in self._loader:
            images, masks = to_device(batch, self._device)
            yield self._mix(images, masks, self.rng) if self._mix else (images, masks)
