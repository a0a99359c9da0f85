"""AUGMENTS: random changes of an image and its mask during training.

Every row builds an albumentations pipeline for ``pipeline(image=..., mask=...)`` with images
[H, W, 3] uint8 and masks [H, W] uint8 in {0, 1}; it keeps sizes, dtypes and the mask's values.
Randomness is the caller's: ``reseed(pipeline, seed)`` before each batch (see
``lesionseg.data.loader``).
"""

from __future__ import annotations

import os
import random

# Looking for a newer version at import would need the network on every worker.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

from lesionseg.space import Float, Option, Pick, build

# A lesion looks the same from every side: all eight symmetries of the square are fair.
_SYMMETRIES = 0.5


def build_none() -> A.Compose:
    """Nothing."""
    return A.Compose([])


def build_flips() -> A.Compose:
    """Horizontal and vertical flips, each of every second image."""
    return A.Compose([A.HorizontalFlip(p=_SYMMETRIES), A.VerticalFlip(p=_SYMMETRIES)])


def build_full(strength: float) -> A.Compose:
    """Flips and quarter turns, affine and elastic changes, colour, gamma and blur.

    ``strength`` in [0, 1] scales every range; at 0 only the flips and quarter turns are left.
    """
    turn, zoom, shift = 45 * strength, 0.3 * strength, 0.1 * strength
    colour = 0.4 * strength
    return A.Compose(
        [
            A.HorizontalFlip(p=_SYMMETRIES),
            A.VerticalFlip(p=_SYMMETRIES),
            A.RandomRotate90(p=_SYMMETRIES),
            A.Affine(
                rotate=(-turn, turn),
                scale=(1 - zoom, 1 + zoom),
                translate_percent=(-shift, shift),
                # Skin goes on beyond the picture; a black corner would be a cue of its own.
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.7,
            ),
            A.ElasticTransform(
                alpha=60 * strength, sigma=8, border_mode=cv2.BORDER_REFLECT_101, p=0.15
            ),
            A.ColorJitter(
                brightness=(1 - colour, 1 + colour),
                contrast=(1 - colour, 1 + colour),
                saturation=(1 - colour, 1 + colour),
                hue=(-0.08 * strength, 0.08 * strength),
                p=0.7,
            ),
            A.RandomGamma(gamma_limit=(100 - 40 * strength, 100 + 40 * strength), p=0.3),
            A.GaussianBlur(blur_limit=(3, 5), p=0.1 * strength),
        ]
    )


AUGMENTS: dict[str, Option] = {
    "none": Option(build_none, {}, "no augmentation"),
    "flips": Option(build_flips, {}, "horizontal and vertical flips"),
    "full": Option(
        build_full,
        {"strength": Float(0.1, 1.0, default=0.5)},
        "flips, quarter turns, affine, elastic, colour, gamma, blur",
    ),
}


def build_augment(pick: Pick) -> A.Compose:
    """The picked pipeline; InputError if the pick is not in the table."""
    pipeline: A.Compose = build("augment", AUGMENTS, pick)
    return pipeline


def reseed(pipeline: A.Compose, seed: int) -> None:
    """Fixes all that the pipeline will draw.

    Its own ``set_random_seed`` hands every transform a generator of that one seed, so that all
    of them draw the same numbers: a horizontal flip would never come without a vertical one.
    """
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
