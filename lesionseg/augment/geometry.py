"""Geometric transforms of the image and its mask.

Masks are sampled at the nearest pixel and stay in {0, 1}. The image is mirrored at its border,
because skin continues there and black corners would be informative.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np

_BORDER = cv2.BORDER_REFLECT_101


class CoarseElastic(A.ElasticTransform):  # type: ignore[misc]
    """Elastic deformation by random shifts of a 3 x 3 grid, bicubic in between.

    Ronneberger et al., arXiv:1505.04597, section 3.1. ``spread`` is the standard deviation of the
    grid's shifts, as a fraction of the shorter side.
    """

    def __init__(self, spread: float = 0.02, p: float = 0.5) -> None:
        super().__init__(border_mode=_BORDER, p=p)
        self.spread = spread

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw ``map_x`` and ``map_y``, float32 [H, W]: where each pixel is read from."""
        height, width = params["shape"][:2]
        spread = self.spread * min(height, width)
        grid = self.random_generator.normal(0, spread, (3, 3, 2)).astype(np.float32)
        shift = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        return {
            "map_x": shift[..., 0] + np.arange(width, dtype=np.float32),
            "map_y": shift[..., 1] + np.arange(height, dtype=np.float32)[:, None],
        }


def flips() -> list[A.BasicTransform]:
    """Return horizontal and vertical flips, each with probability 0.5."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def turn(strength: float, p: float) -> A.BasicTransform:
    """Return rotation about the centre by up to 180 degrees x ``strength``."""
    return A.Affine(rotate=(-180 * strength, 180 * strength), border_mode=_BORDER, p=p)


def warp(strength: float, p: float) -> A.BasicTransform:
    """Return rotation, zoom (0.3), shift (0.1 of a side) and shear (15 degrees) x ``strength``.

    As one transform, so that the image is resampled once.
    """
    angle, zoom, shift, shear = np.array([180, 0.3, 0.1, 15]) * strength
    return A.Affine(
        rotate=(-angle, angle),
        scale=(1 - zoom, 1 + zoom),
        translate_percent=(-shift, shift),
        shear=(-shear, shear),
        keep_ratio=True,
        border_mode=_BORDER,
        p=p,
    )


def elastic(strength: float, p: float) -> A.BasicTransform:
    """Return coarse elastic deformation; strength 0.5 is that of the U-Net paper."""
    return CoarseElastic(spread=0.04 * strength, p=p)
