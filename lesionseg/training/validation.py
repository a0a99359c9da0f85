"""Validator: loss and metrics of a network on the validation images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg.config import TrialConfig
from lesionseg.data.loader import iterate_batches, to_device
from lesionseg.losses import build_loss
from lesionseg.metrics import overlap
from lesionseg.metrics.overlap import Metrics
from lesionseg.runtime.device import amp_dtype, autocast
from lesionseg.runtime.oom import AdaptiveBatcher
from lesionseg.training.types import TrainData

#: Without gradients, several times as many images fit; on a CPU this is not faster.
CUDA_BATCH_FACTOR = 4


class Validator:
    """Evaluates networks on the validation images.

    The loss is built without flooding, label smoothing and mixing, so that it is comparable
    between configurations of one loss. Pixels are counted on the device and scored once.
    """

    def __init__(self, config: TrialConfig, data: TrainData, device: torch.device) -> None:
        self._data, self._device = data, device
        self._loss = build_loss(config.loss, overlap=config.overlap)
        self._dtype = amp_dtype(device, config.amp)
        factor = CUDA_BATCH_FACTOR if device.type == "cuda" else 1
        self._batcher = AdaptiveBatcher(factor * config.batch_size, device)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, on_batch: Callable[[], None]) -> tuple[float, Metrics]:
        """Return the mean loss and the metrics.

        Args:
            model: logits [N, 1, S, S] from normalised images; is left in evaluation mode.
            on_batch: called between two batches.
        """
        model.eval()
        members = self._data.val
        loss_sum = torch.zeros((), device=self._device)
        counts: list[Tensor] = []
        for loss, batch_counts in self._batcher(
            len(members), lambda part: self._evaluate_batch(model, members[part])
        ):
            loss_sum += loss
            counts.append(batch_counts)
            if sum(map(len, counts)) < len(members):
                on_batch()
        scores = overlap.mean_scores(overlap.score_images(torch.cat(counts).cpu().numpy()))
        return float(loss_sum) / len(members), scores

    def _evaluate_batch(
        self, model: nn.Module, members: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses of some images and the pixel counts [N, 4]."""
        batch = next(iterate_batches(self._data.cache, members, len(members)))
        images, masks = to_device(batch, self._device)
        with autocast(self._device, self._dtype):
            logits = model(images)
        loss = self._loss(logits, masks) * len(images)
        return loss, overlap.count_pixels(logits > 0, masks > 0.5)
