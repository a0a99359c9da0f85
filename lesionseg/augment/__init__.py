"""AUGMENTS: random changes of an image and its mask during training.

Every row builds an albumentations pipeline for ``pipeline(image=..., mask=...)`` with images
[H, W, 3] uint8 and masks [H, W] uint8 in {0, 1}; it keeps sizes, dtypes and the mask's values.
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

from lesionseg.augment.colour import blur, colours
from lesionseg.augment.dermoscopy import artefacts
from lesionseg.augment.geometry import elastic, flips, symmetries, turn, warp
from lesionseg.space import ComponentConfig, Float, RegistryEntry, build

_STRENGTH = {"strength": Float(0.1, 1.0, default=0.5)}

AUGMENTS: dict[str, RegistryEntry] = {
    "none": RegistryEntry(lambda: A.Compose([]), {}, "no augmentation"),
    "flips": RegistryEntry(lambda: A.Compose(flips()), {}, "horizontal and vertical flips"),
    "rotations": RegistryEntry(
        lambda strength: A.Compose([symmetries(), turn(strength, p=0.75)]),
        _STRENGTH,
        "flips, quarter turns, turns by any angle",
    ),
    "geometric": RegistryEntry(
        lambda strength: A.Compose(
            [symmetries(), warp(strength, p=0.75), elastic(strength, p=0.3)]
        ),
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
                symmetries(),
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
