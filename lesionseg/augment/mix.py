"""MIXES: training images composed of two images of a batch (MixUp, CutMix).

Every row builds a callable of images, float [N, 3, H, W], masks, float [N, 1, H, W] in [0, 1], and
a random generator. It returns new tensors of the same shapes, dtypes and memory formats; a batch
of one image is returned unchanged. Random numbers are drawn on the host and no value is read back
from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lesionseg.space import ComponentConfig, Float, RegistryEntry, build

Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
Combine = Callable[[Tensor, Tensor], Tensor]


def build_mixup(alpha: float) -> Mix:
    """Return weighted means of two images and of their masks.

    Zhang et al., arXiv:1710.09412, eq. 1. There is one weight per batch, as in the authors' code,
    drawn from Beta(alpha, alpha).
    """

    def draw_weight(images: Tensor, rng: np.random.Generator) -> Combine:
        weight = float(rng.beta(alpha, alpha))
        return lambda partner, batch: torch.lerp(partner, batch, weight)

    return partial(_mix_pairs, draw_weight)


def build_cutmix(alpha: float) -> Mix:
    """Return images and masks with a box from another image and its mask.

    Yun et al., arXiv:1905.04899, eq. 1-2. The box's share of the area is 1 - lambda, with lambda
    from Beta(alpha, alpha). Each image has its own box, which lies entirely inside the image.
    """

    def draw_boxes(images: Tensor, rng: np.random.Generator) -> Combine:
        boxes = _draw_boxes(images, 1 - rng.beta(alpha, alpha, len(images)), rng)
        return lambda partner, batch: torch.where(boxes, partner, batch)

    return partial(_mix_pairs, draw_boxes)


MIXES: dict[str, RegistryEntry] = {
    "none": RegistryEntry(lambda: None, {}, "no mixing"),
    "mixup": RegistryEntry(
        build_mixup, {"alpha": Float(0.05, 2.0, 0.4, log=True)}, "weighted means of two images"
    ),
    "cutmix": RegistryEntry(
        build_cutmix, {"alpha": Float(0.05, 2.0, 1.0, log=True)}, "a box from another image"
    ),
}


def build_mix(component: ComponentConfig) -> Mix | None:
    """Build an entry of MIXES, None for "none"; raises InputError if the component is invalid."""
    mix: Mix | None = build("mix", MIXES, component)
    return mix


def _mix_pairs(
    draw: Callable[[Tensor, np.random.Generator], Combine],
    images: Tensor,
    masks: Tensor,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    if len(images) < 2:
        return images, masks
    # The batch is shuffled, so that a roll pairs images as randomly as a permutation does, without
    # a table of indices on the device. ``torch.roll`` would not keep the memory format.
    shift = int(rng.integers(1, len(images)))
    combine = draw(images, rng)
    mixed = [combine(torch.cat([b[shift:], b[:shift]]), b) for b in (images, masks)]
    return mixed[0], mixed[1]


def _draw_boxes(images: Tensor, areas: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Draw a box per image with the given shares of the area; bool [N, 1, H, W]."""
    sides = np.array(images.shape[-2:])
    lengths = np.rint(sides * np.sqrt(areas)[:, None]).astype(np.int64)
    starts = rng.integers(0, sides - lengths + 1)
    edges = torch.from_numpy(np.stack([starts, starts + lengths]))
    # Non-blocking is safe: copies from memory that is not pinned are staged.
    low, high = edges.to(images.device, non_blocking=True)
    rows, columns = (
        (place >= low[:, axis, None]) & (place < high[:, axis, None])
        for axis, place in enumerate(torch.arange(int(s), device=images.device) for s in sides)
    )
    inside: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return inside
