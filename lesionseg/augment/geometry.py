"""Changes of place: the image and its mask move together.

Masks are read at the nearest pixel, so that they stay in {0, 1}. What comes in from outside is
the picture mirrored at its border: skin goes on beyond it, and a black corner would be a cue.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np

_BORDER = cv2.BORDER_REFLECT_101


class Symmetries(A.D4):  # type: ignore[misc]
    """One of the eight symmetries of the square, all equally likely.

    A picture that is not square has the four that keep its shape.
    """

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """The name of the symmetry, for ``params["shape"]`` = [H, W, ...]."""
        height, width = params["shape"][:2]
        names = ["e", "r180", "h", "v"]
        if height == width:
            names += ["r90", "r270", "t", "hvt"]
        return {"group_element": self.py_random.choice(names)}


class CoarseElastic(A.ElasticTransform):  # type: ignore[misc]
    """Bends the picture by random shifts of a 3 x 3 grid, bicubic in between.

    Ronneberger et al., arXiv:1505.04597, section 3.1. Only 18 numbers are drawn, whatever the
    size of the picture.

    Args:
        spread: standard deviation of the grid's shifts, as a part of the shorter side.
        p: how often it comes.
    """

    def __init__(self, spread: float = 0.02, p: float = 0.5) -> None:
        super().__init__(border_mode=_BORDER, p=p)
        self.spread = spread

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Where each pixel is read from: ``map_x`` and ``map_y``, float32 [H, W]."""
        height, width = params["shape"][:2]
        grid = self.random_generator.normal(0, self.spread * min(height, width), (3, 3, 2))
        shift = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        return {
            "map_x": shift[..., 0] + np.arange(width, dtype=np.float32),
            "map_y": shift[..., 1] + np.arange(height, dtype=np.float32)[:, None],
        }


def flips() -> list[A.BasicTransform]:
    """Horizontal and vertical flips, each of every second image."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def symmetries() -> A.BasicTransform:
    """A lesion looks the same from every side: all symmetries are fair, at every strength."""
    return Symmetries(p=1.0)


def turn(strength: float, p: float) -> A.BasicTransform:
    """A turn about the centre by up to 180 degrees x ``strength``."""
    return A.Affine(rotate=(-180 * strength, 180 * strength), border_mode=_BORDER, p=p)


def warp(strength: float, p: float) -> A.BasicTransform:
    """Turn, zoom (up to 0.3), shift (0.1 of a side) and shear (15 degrees), times ``strength``.

    One transform rather than four: the picture is resampled once.
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
    """A coarse elastic change; 0.5 is the U-Net paper's (10 of 512 pixels)."""
    return CoarseElastic(spread=0.04 * strength, p=p)
