"""predict() and evaluate(): one row per image, at the mask's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lesionseg import metrics
from lesionseg.data.cache import Cache
from lesionseg.data.index import Record
from lesionseg.data.loader import in_order, normalise
from lesionseg.data.pictures import read_mask
from lesionseg.data.split import positions

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """One row per record, in order.

    counts: int64 [N, 4], true positive, false positive, false negative and true negative
    pixels at the mask's own size. shapes: its height and width.
    """

    records: tuple[Record, ...]
    counts: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]

    @property
    def scores(self) -> dict[str, metrics.Floats]:
        """Scores of each image by name, float64 [N]."""
        return metrics.score(self.counts)


@torch.inference_mode()
def predict(
    model: nn.Module,
    cache: Cache,
    members: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 16,
) -> Iterator[Probabilities]:
    """The lesion's probability [S, S] in [0, 1] for each member of a cache, in order."""
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for images, _ in in_order(cache, members, batch_size):
        logits = model(normalise(images.to(device)))
        yield from logits.float().sigmoid().squeeze(1).cpu().numpy()


def to_mask(probability: Probabilities, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask [H, W] at another size: probabilities are interpolated, then cut at one half."""
    height, width = shape
    full = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
    mask: NDArray[np.bool_] = full > 0.5
    return mask


def evaluate(
    model: nn.Module,
    cache: Cache,
    records: Sequence[Record],
    *,
    device: torch.device,
    on_image: Callable[[Record, NDArray[np.bool_], NDArray[np.bool_]], None] | None = None,
) -> Evaluation:
    """Judges a network on records of a cache against their masks as they lie on disk.

    on_image: called with each record, its predicted mask and its true one, [H, W] each.
    """
    where = positions([r.name for r in records], cache.names)
    counts, shapes = [], []
    for record, probability in zip(
        records, predict(model, cache, where, device=device), strict=True
    ):
        truth, _ = read_mask(record.mask)
        predicted = to_mask(probability, truth.shape)
        pair = (torch.from_numpy(m[None]) for m in (predicted, truth))
        counts.append(metrics.count(*pair).numpy()[0])
        shapes.append((truth.shape[0], truth.shape[1]))
        if on_image:
            on_image(record, predicted, truth)
    stacked = np.stack(counts) if counts else np.zeros((0, 4), dtype=np.int64)
    return Evaluation(tuple(records), stacked, tuple(shapes))
