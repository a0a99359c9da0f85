"""Evaluate a network on the images of a cache: one row per image, at the mask's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lesionseg.data.cache import Cache
from lesionseg.data.image_io import Pixels
from lesionseg.data.pair_io import read_true_mask
from lesionseg.data.pairs import Record
from lesionseg.data.split import find_positions
from lesionseg.inference.batch_predict import prefetch
from lesionseg.inference.postprocess import (
    Chain,
    Mask,
    Probability,
    probability_to_mask,
    refine_probability,
    resize_probability,
)
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.inference.tta import NetworkOutput, predict_images
from lesionseg.metrics.curves import probability_histogram
from lesionseg.metrics.overlap import Floats, count_pixels, score_images
from lesionseg.metrics.surface import SURFACE_DISTANCES, percent_of_diagonal, surface_distances
from lesionseg.runtime.device import with_index
from lesionseg.runtime.oom import AdaptiveBatcher

#: Images that are evaluated in parallel; limits the masks of full size in memory.
PARALLEL_IMAGES = 16


@dataclass(frozen=True)
class Evaluation:
    """Results per image at the mask's own size, in the order of the records.

    counts: int64 [N, 4] of ``count_pixels``.
    shapes: height and width of each mask.
    surface: float64 [N, 3], the distances of ``SURFACE_DISTANCES`` in pixels.
    histograms: int64 [N, 2, bins] of ``probability_histogram``.
    disagreement: of the members of an ensemble, float64 [N], see ``ensemble.disagreement``; None
        for a single network.
    """

    records: tuple[Record, ...]
    counts: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    surface: Floats
    histograms: NDArray[np.int64]
    disagreement: Floats | None = None

    @property
    def scores(self) -> dict[str, Floats]:
        """Overlap scores by name, float64 [N] each, in [0, 1]."""
        return score_images(self.counts)

    @property
    def distances(self) -> dict[str, Floats]:
        """Surface distances by name, float64 [N] each: ``hd`` in pixels, ``hd_percent`` in percent
        of the mask's diagonal, ..."""
        distances: dict[str, Floats] = {}
        for name, pixels in zip(SURFACE_DISTANCES, self.surface.T, strict=True):
            percent = map(percent_of_diagonal, pixels, self.shapes)
            distances |= {name: pixels, f"{name}_percent": np.fromiter(percent, np.float64)}
        return distances


def predict_probabilities(
    model: nn.Module,
    cache: Cache,
    members: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 16,
    inference: Inference = DEFAULT_INFERENCE,
    amp: str = "auto",
) -> Iterator[Probability]:
    """Yield the lesion's probability, float32 [S, S]; arguments as ``predict_outputs``."""
    outputs = predict_outputs(
        model, cache, members, device=device, batch_size=batch_size, inference=inference, amp=amp
    )
    return (output.probability for output in outputs)


def predict_outputs(
    model: nn.Module,
    cache: Cache,
    members: NDArray[np.int64],
    *,
    device: torch.device,
    batch_size: int = 16,
    inference: Inference = DEFAULT_INFERENCE,
    amp: str = "auto",
) -> Iterator[NetworkOutput]:
    """Yield the output, with its refined probability, for images of a cache.

    Args:
        model: logits [N, 1, S, S]; is moved to the device and left in evaluation mode.
        cache: cached images.
        members: positions of the images in the cache.
        device: device of the network.
        batch_size: images per forward pass; reduced if they do not fit into memory.
        inference: test-time augmentation and refinement of the probabilities.
        amp: precision of the network's training; see ``predict_images``.
    """
    device = with_index(device)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def predict_batch(part: slice) -> tuple[Pixels, list[NetworkOutput]]:
        images = cache.images[members[part]]
        outputs = predict_images(model, images, (inference.tta,), device, amp)
        return images, outputs[inference.tta]

    for images, outputs in AdaptiveBatcher(batch_size, device)(len(members), predict_batch):
        for image, output in zip(images, outputs, strict=True):
            refined = refine_probability(inference.chain, output.probability, image)
            yield replace(output, probability=refined)


def evaluate(
    model: nn.Module,
    cache: Cache,
    records: Sequence[Record],
    *,
    device: torch.device,
    inference: Inference = DEFAULT_INFERENCE,
    amp: str = "auto",
    on_image: Callable[[Record, Mask, Mask], None] | None = None,
) -> Evaluation:
    """Evaluate a network against the mask files of a cache's images.

    Args:
        model: as in ``predict_probabilities``.
        cache: cached images.
        records: the images to evaluate, at least one.
        device: device of the network.
        inference: settings that were selected on other images.
        amp: precision of the network's training; see ``predict_images``.
        on_image: called with each record, its predicted and its true mask, bool [H, W] each.
    """
    members = find_positions([r.name for r in records], cache.names)
    outputs = predict_outputs(model, cache, members, device=device, inference=inference, amp=amp)
    pairs = zip(records, outputs, strict=True)
    rows: list[tuple[Any, ...]] = []
    # Surface distances of large masks take a second each and release the GIL.
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        results = prefetch(
            pool, lambda pair: _evaluate_image(*pair, inference.chain), pairs, PARALLEL_IMAGES
        )
        for record, (row, predicted, truth) in zip(records, results, strict=True):
            rows.append(row)
            if on_image:
                on_image(record, predicted, truth)
    counts, shapes, surface, histograms, disagreement = zip(*rows, strict=True)
    return Evaluation(
        tuple(records),
        np.stack(counts),
        shapes,
        np.array(surface),
        np.stack(histograms),
        None if disagreement[0] is None else np.array(disagreement, np.float64),
    )


def _evaluate_image(
    record: Record, output: NetworkOutput, chain: Chain
) -> tuple[tuple[Any, ...], Mask, Mask]:
    """Return one image's row of an Evaluation, its predicted and its true mask."""
    truth = read_true_mask(record)
    shape = (truth.shape[0], truth.shape[1])
    full = resize_probability(output.probability, shape)
    predicted = probability_to_mask(chain, full)
    counts = count_pixels(torch.from_numpy(predicted[None]), torch.from_numpy(truth[None]))
    distances = surface_distances(predicted, truth)
    histogram = probability_histogram(full, truth)
    row = (counts.numpy()[0], shape, list(distances.values()), histogram, output.disagreement)
    return row, predicted, truth
