"""AUGMENTS: random changes of an image and its mask during training.

Every row builds an albumentations pipeline for ``pipeline(image=..., mask=...)`` with images
[H, W, 3] uint8 and masks [H, W] uint8 in {0, 1}; it keeps sizes, dtypes and the mask's values.
``strength`` in [0.1, 1] scales every range of a row; how often a change comes is fixed.
Randomness is the caller's: ``reseed(pipeline, seed)`` before each batch (see
``lesionseg.data.loader``).
"""

from __future__ import annotations

import os
import random

# Looking for a newer version at import would need the network on every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np

from lesionseg.augment.colour import blur, colours
from lesionseg.augment.dermoscopy import artefacts
from lesionseg.augment.geometry import elastic, flips, symmetries, turn, warp
from lesionseg.space import Float, ComponentConfig, RegistryEntry, build


def build_none() -> A.Compose:
    """Nothing."""
    return A.Compose([])


def build_flips() -> A.Compose:
    """Horizontal and vertical flips, each of every second image."""
    return A.Compose(flips())


def build_rotations(strength: float) -> A.Compose:
    """Flips, quarter turns, and turns by any angle up to 180 degrees x ``strength``."""
    return A.Compose([symmetries(), turn(strength, p=0.75)])


def build_geometric(strength: float) -> A.Compose:
    """What ``rotations`` does, with zoom, shift, shear and an elastic change."""
    return A.Compose([symmetries(), warp(strength, p=0.75), elastic(strength, p=0.3)])


def build_colour(strength: float) -> A.Compose:
    """Brightness, contrast, saturation, hue, gamma and CLAHE; nothing moves."""
    return A.Compose(colours(strength))


def build_dermoscopy(strength: float) -> A.Compose:
    """Flips, and what a dermoscope adds to the skin: hair, rulers, bubbles, glare, vignettes."""
    return A.Compose([*flips(), *artefacts(strength)])


def build_full(strength: float) -> A.Compose:
    """The changes of ``geometric``, ``colour`` and ``dermoscopy``, and blur."""
    return A.Compose(
        [
            symmetries(),
            warp(strength, p=0.7),
            elastic(strength, p=0.2),
            *colours(strength, share=0.8),
            *artefacts(strength, share=0.5),
            blur(strength, p=0.1),
        ]
    )


_STRENGTH = {"strength": Float(0.1, 1.0, default=0.5)}

AUGMENTS: dict[str, RegistryEntry] = {
    "none": RegistryEntry(build_none, {}, "no augmentation"),
    "flips": RegistryEntry(build_flips, {}, "horizontal and vertical flips"),
    "rotations": RegistryEntry(
        build_rotations, _STRENGTH, "flips, quarter turns, turns by any angle"
    ),
    "geometric": RegistryEntry(
        build_geometric, _STRENGTH, "rotations, zoom, shift, shear and elastic changes"
    ),
    "colour": RegistryEntry(
        build_colour, _STRENGTH, "brightness, contrast, saturation, hue, gamma, CLAHE"
    ),
    "dermoscopy": RegistryEntry(
        build_dermoscopy,
        _STRENGTH,
        "flips; hair drawn or removed, ruler marks, bubbles, glare, vignette",
    ),
    "full": RegistryEntry(
        build_full, _STRENGTH, "geometric, colour and dermoscopy together, and blur"
    ),
}


def build_augment(component: ComponentConfig) -> A.Compose:
    """The picked pipeline; InputError if the component is not in the table."""
    pipeline: A.Compose = build("augment", AUGMENTS, component)
    return pipeline


def reseed(pipeline: A.Compose, seed: int) -> None:
    """Fixes all that the pipeline will draw.

    Its own ``set_random_seed`` hands every transform a generator of that one seed, so that all
    of them draw the same numbers: a horizontal flip would never come without a vertical one.
    """
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
