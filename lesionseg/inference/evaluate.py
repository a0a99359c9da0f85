"""predict() and evaluate(): one row per image, at the mask's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg import metrics
from lesionseg.data.cache import Cache
from lesionseg.data.image_io import read_mask
from lesionseg.data.index import Record
from lesionseg.data.loader import in_order, normalise
from lesionseg.data.split import positions
from lesionseg.inference.postprocess import to_mask, refine_probability
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.inference.tta import predict_with_tta
from lesionseg.runtime.oom import AdaptiveBatcher

Probabilities = NDArray[np.float32]

#: Images that are judged side by side.
AT_ONCE = 16


@dataclass(frozen=True)
class Evaluation:
    """One row per record, in order.

    counts: int64 [N, 4], true positive, false positive, false negative and true negative
    pixels at the mask's own size. shapes: its height and width.
    surface: float64 [N, 3], the distances of ``metrics.SURFACE_DISTANCES`` in pixels at that size.
    tallies: int64 [N, 2, bins], pixels by probability, as ``metrics.probability_histogram`` counts them.
    """

    records: tuple[Record, ...]
    counts: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    surface: metrics.Floats
    tallies: NDArray[np.int64]

    @property
    def scores(self) -> dict[str, metrics.Floats]:
        """Overlap scores of each image by name, float64 [N], each in [0, 1]."""
        return metrics.score_images(self.counts)

    @property
    def distances(self) -> dict[str, metrics.Floats]:
        """Surface distances of each image, float64 [N]: ``hd`` in pixels at the mask's own size,
        ``hd_percent`` in percent of its diagonal, and so on for the others."""
        found: dict[str, metrics.Floats] = {}
        for i, name in enumerate(metrics.SURFACE_DISTANCES):
            pixels = self.surface[:, i]
            shares = [metrics.percent_of_diagonal(v, s) for v, s in zip(pixels, self.shapes, strict=True)]
            found[name] = pixels
            found[f"{name}_percent"] = np.asarray(shares, dtype=np.float64)
        return found


def predict_probabilities(
    model: nn.Module,
    cache: Cache,
    members: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 16,
    inference: Inference = DEFAULT_INFERENCE,
) -> Iterator[Probabilities]:
    """The lesion's probability [S, S] in [0, 1] for each member of a cache, in order.

    batch_size: how many at once, or fewer where they do not fit into memory.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.inference_mode()
    def few(part: slice) -> tuple[Tensor, Tensor]:
        images, _ = next(in_order(cache, members[part], part.stop - part.start))
        return images, predict_with_tta(model, normalise(images.to(device)), inference.tta).float().cpu()

    for images, found in AdaptiveBatcher(batch_size, device)(len(members), few):
        for image, probability in zip(images.numpy(), found.squeeze(1).numpy(), strict=True):
            yield refine_probability(inference.chain, probability, image)


def evaluate(
    model: nn.Module,
    cache: Cache,
    records: Sequence[Record],
    *,
    device: torch.device,
    inference: Inference = DEFAULT_INFERENCE,
    on_image: Callable[[Record, NDArray[np.bool_], NDArray[np.bool_]], None] | None = None,
) -> Evaluation:
    """Judges a network on records of a cache against their masks as they lie on disk.

    inference: what is done to its output, chosen beforehand on other images.
    on_image: called with each record, its predicted mask and its true one, [H, W] each.
    """
    where = positions([r.name for r in records], cache.names)
    found = predict_probabilities(model, cache, where, device=device, inference=inference)
    pairs = zip(records, found, strict=True)
    judged: list[_Judged] = []
    # Distances between the boundaries of large masks take a second each, without the GIL. A few
    # at a time, so that few masks of full size are in memory.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        while few := list(islice(pairs, AT_ONCE)):
            for (record, _), (row, predicted, truth) in zip(
                few, pool.map(lambda pair: _judge(pair[0], pair[1], inference), few), strict=True
            ):
                judged.append(row)
                if on_image:
                    on_image(record, predicted, truth)
    return Evaluation(
        tuple(records),
        np.asarray([row.counts for row in judged], dtype=np.int64).reshape(-1, 4),
        tuple(row.shape for row in judged),
        np.asarray([row.surface for row in judged]).reshape(-1, len(metrics.SURFACE_DISTANCES)),
        np.stack([row.tally for row in judged]) if judged else np.zeros((0, 2, 1), np.int64),
    )


class _Judged(NamedTuple):
    """One image's part of an Evaluation."""

    counts: NDArray[np.int64]
    shape: tuple[int, int]
    surface: list[float]
    tally: NDArray[np.int64]


def _judge(
    record: Record, probability: Probabilities, inference: Inference
) -> tuple[_Judged, NDArray[np.bool_], NDArray[np.bool_]]:
    """One image's row, its predicted mask and its true one."""
    truth, _ = read_mask(record.mask)
    shape = (truth.shape[0], truth.shape[1])
    predicted = to_mask(inference.chain, probability, shape)
    counts = metrics.count_pixels(torch.from_numpy(predicted[None]), torch.from_numpy(truth[None]))
    distances = metrics.surface_distances(predicted, truth)
    full = cv2.resize(probability, shape[::-1], interpolation=cv2.INTER_LINEAR)
    row = _Judged(
        counts.numpy()[0],
        shape,
        [distances[name] for name in metrics.SURFACE_DISTANCES],
        metrics.probability_histogram(full.astype(np.float32, copy=False), truth),
    )
    return row, predicted, truth
