"""AUGMENTS: random changes of an image and its mask during training.

Every row builds an albumentations pipeline for ``pipeline(image=..., mask=...)`` with images
[S, S, 3] uint8 and masks [S, S] uint8 in {0, 1}; it keeps dtypes and the mask's values.
``strength`` in [0.1, 1] scales the ranges of a row, not the probabilities of its transforms.
Pipelines are seeded by ``reseed`` before each batch (see ``lesionseg.data.loader``).
"""

from __future__ import annotations

import os
import random

# The search for a newer version at import would need the network on every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np

from lesionseg.augment.dermoscopy import artefacts
from lesionseg.augment.geometry import elastic, flips, turn, warp
from lesionseg.space import ComponentConfig, Float, RegistryEntry, build


def colours(strength: float, share: float = 1.0) -> list[A.BasicTransform]:
    """Return brightness, contrast, saturation and hue; gamma; local contrast (CLAHE).

    ``strength`` in [0, 1] scales the ranges, ``share`` in [0, 1] the probabilities.
    """
    part = 0.4 * strength
    around_one = (1 - part, 1 + part)
    return [
        A.ColorJitter(
            brightness=around_one,
            contrast=around_one,
            saturation=around_one,
            # Hues far from those of skin do not occur.
            hue=(-0.08 * strength, 0.08 * strength),
            p=0.9 * share,
        ),
        A.RandomGamma(gamma_limit=(100 - 40 * strength, 100 + 40 * strength), p=0.4 * share),
        A.CLAHE(clip_limit=(1, 1 + 3 * strength), tile_grid_size=(4, 4), p=0.2 * share),
    ]


def blur(strength: float, p: float) -> A.BasicTransform:
    """Return Gaussian blur with a standard deviation of up to 2 pixels x ``strength``."""
    return A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, max(0.1, 2 * strength)), p=p)


_STRENGTH = {"strength": Float(0.1, 1.0, default=0.5)}

AUGMENTS: dict[str, RegistryEntry] = {
    "none": RegistryEntry(lambda: A.Compose([]), {}, "no augmentation"),
    "flips": RegistryEntry(lambda: A.Compose(flips()), {}, "horizontal and vertical flips"),
    "rotations": RegistryEntry(
        lambda strength: A.Compose([A.D4(), turn(strength, p=0.75)]),
        _STRENGTH,
        "flips, quarter turns, turns by any angle",
    ),
    "geometric": RegistryEntry(
        lambda strength: A.Compose([A.D4(), warp(strength, p=0.75), elastic(strength, p=0.3)]),
        _STRENGTH,
        "rotations, zoom, shift, shear and elastic changes",
    ),
    "colour": RegistryEntry(
        lambda strength: A.Compose(colours(strength)),
        _STRENGTH,
        "brightness, contrast, saturation, hue, gamma, CLAHE",
    ),
    "dermoscopy": RegistryEntry(
        lambda strength: A.Compose([*flips(), *artefacts(strength)]),
        _STRENGTH,
        "flips; hair drawn or removed, ruler marks, bubbles, glare, vignette",
    ),
    "full": RegistryEntry(
        lambda strength: A.Compose(
            [
                A.D4(),
                warp(strength, p=0.7),
                elastic(strength, p=0.2),
                *colours(strength, share=0.8),
                *artefacts(strength, share=0.5),
                blur(strength, p=0.1),
            ]
        ),
        _STRENGTH,
        "geometric, colour and dermoscopy together, and blur",
    ),
}


def build_augment(component: ComponentConfig) -> A.Compose:
    """Build a pipeline of AUGMENTS; raises InputError if the component is invalid."""
    pipeline: A.Compose = build("augment", AUGMENTS, component)
    return pipeline


def reseed(pipeline: A.Compose, seed: int) -> None:
    """Seed a pipeline.

    Albumentations' ``set_random_seed`` gives each transform its own generator with the same seed,
    so that all draw the same numbers: horizontal flips would occur only with vertical ones.
    """
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
