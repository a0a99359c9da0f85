"""MIXES: new training images made of two of a batch.

Every row builds a callable of images [N, 3, H, W], float, masks [N, 1, H, W], float in [0, 1],
and a generator; it gives both in the same shapes, dtypes and memory formats, on the batch's own
device, and leaves its arguments as they were. A batch of one has no partner and comes back
itself.

All that is random is drawn on the host, and no value is read back from the device, so that the
training step never waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lesionseg.space import Float, ComponentConfig, RegistryEntry, build

Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


def build_none() -> None:
    """Nothing: the training step is spared the call."""


def build_mixup(alpha: float) -> Mix:
    """Weighted means of two images and of their masks; Zhang et al., arXiv:1710.09412, eq. 1.

    The weight is one for the batch, as in the authors' code, from Beta(alpha, alpha). Masks
    become soft.
    """

    def mix(images: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if len(images) < 2:
            return images, masks
        by, weight = _partner(len(images), rng), float(rng.beta(alpha, alpha))
        return _mean(images, by, weight), _mean(masks, by, weight)

    return mix


def build_cutmix(alpha: float) -> Mix:
    """A box of each image, and of its mask, from another; Yun et al., arXiv:1905.04899, eq. 1-2.

    1 - lambda, with lambda from Beta(alpha, alpha), is the box's part of the area. The mask is
    cut with the image, so that no label is mixed by area. The box lies wholly inside, one for
    each image, so that its area is the one drawn, up to whole pixels.
    """

    def mix(images: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if len(images) < 2:
            return images, masks
        by = _partner(len(images), rng)
        cut = _boxes(images, 1 - rng.beta(alpha, alpha, len(images)), rng)
        return (
            torch.where(cut, _turned(images, by), images),
            torch.where(cut, _turned(masks, by), masks),
        )

    return mix


MIXES: dict[str, RegistryEntry] = {
    "none": RegistryEntry(build_none, {}, "every image alone"),
    "mixup": RegistryEntry(
        build_mixup, {"alpha": Float(0.05, 2.0, 0.4, log=True)}, "weighted means of two images"
    ),
    "cutmix": RegistryEntry(
        build_cutmix, {"alpha": Float(0.05, 2.0, 1.0, log=True)}, "a box from another image"
    ),
}


def build_mix(component: ComponentConfig) -> Mix | None:
    """The picked mix, None for the row none; InputError if the component is not in the table."""
    mix: Mix | None = build("mix", MIXES, component)
    return mix


def _partner(size: int, rng: np.random.Generator) -> int:
    """How many places further each image's partner stands: never itself.

    The loader has shuffled the batch, so that a turn pairs as randomly as a permutation, and
    it needs no table of indices on the device.
    """
    return int(rng.integers(1, size))


def _turned(batch: Tensor, by: int) -> Tensor:
    """The batch turned by some places; ``torch.roll`` would lose the memory format."""
    return torch.cat([batch[by:], batch[:by]])


def _mean(batch: Tensor, by: int, weight: float) -> Tensor:
    return torch.lerp(_turned(batch, by), batch, weight)


def _boxes(images: Tensor, areas: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Bool [N, 1, H, W] on the images' device: a box of that part of the area in each."""
    sides = np.array(images.shape[-2:])
    lengths = np.rint(sides * np.sqrt(areas)[:, None]).astype(np.int64)
    starts = rng.integers(0, sides - lengths + 1)
    edges = torch.from_numpy(np.stack([starts, starts + lengths]))
    # Not blocking: a copy from memory that is not pinned is staged, so it is safe at once.
    low, high = edges.to(images.device, non_blocking=True)
    rows, columns = (
        (place >= low[:, axis, None]) & (place < high[:, axis, None])
        for axis, place in enumerate(torch.arange(int(s), device=images.device) for s in sides)
    )
    inside: Tensor = rows[:, None, :, None] & columns[:, None, None, :]
    return inside
