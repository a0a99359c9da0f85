"""Geometric transforms of the image and its mask.

Masks are sampled at the nearest pixel and stay in {0, 1}. The image is mirrored at its border,
because skin continues there and black corners would be informative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.augment.drawing import Params, Picture

Matrix = NDArray[np.float64]

_BORDER = cv2.BORDER_REFLECT_101


class Symmetries(A.D4):  # type: ignore[misc]
    """One of the eight symmetries of the square, or of the four of a rectangle, at random."""

    def get_params_dependent_on_data(self, params: Params, data: Params) -> Params:
        height, width = params["shape"][:2]
        names = ["e", "r180", "h", "v"]
        if height == width:
            names += ["r90", "r270", "t", "hvt"]
        return {"group_element": self.py_random.choice(names)}

    def apply(self, img: Picture, group_element: str, **params: Any) -> Picture:
        transformed: Picture = SYMMETRIES[group_element](img)
        return transformed

    def apply_to_mask(self, mask: Picture, group_element: str, **params: Any) -> Picture:
        return self.apply(mask, group_element)


#: By OpenCV, which copies: NumPy's views would be copied by the next transform.
SYMMETRIES: dict[str, Callable[[Picture], Any]] = {
    "e": lambda x: x,
    "h": lambda x: cv2.flip(x, 1),
    "v": lambda x: cv2.flip(x, 0),
    "r90": lambda x: cv2.rotate(x, cv2.ROTATE_90_COUNTERCLOCKWISE),
    "r180": lambda x: cv2.rotate(x, cv2.ROTATE_180),
    "r270": lambda x: cv2.rotate(x, cv2.ROTATE_90_CLOCKWISE),
    "t": cv2.transpose,
    "hvt": lambda x: cv2.rotate(cv2.transpose(x), cv2.ROTATE_180),
}


class Warp(A.Affine):  # type: ignore[misc]
    """An affine transform with the same draws and result as its parent class.

    It takes a third of the time, without the parent's preparations for boxes and keypoints.
    """

    def get_params_dependent_on_data(self, params: Params, data: Params) -> Params:
        """Draw ``matrix`` [3, 3], which maps input to output pixels (x, y, 1)."""
        height, width = params["shape"][:2]
        shift = self._get_translate_params((height, width))
        shear = self._get_shear_params()
        zoom = self._get_scale(self.scale, self.keep_ratio, self.balanced_scale, self.py_random)
        turn = math.radians(self.py_random.uniform(*self.rotate))
        sin, cos = math.sin(turn), math.cos(turn)
        along, across = (math.tan(math.radians(shear[axis])) for axis in "xy")
        # Zoom, rotation and shear about the centre.
        a, b = zoom["x"] * (cos - along * sin), zoom["y"] * (sin + along * cos)
        c, d = zoom["x"] * (across * cos - sin), zoom["y"] * (across * sin + cos)
        x, y = (width - 1) / 2, (height - 1) / 2
        to_x, to_y = x + shift["x"] - a * x - b * y, y + shift["y"] - c * x - d * y
        return {"matrix": np.array([[a, b, to_x], [c, d, to_y], [0.0, 0.0, 1.0]])}

    def apply(self, img: Picture, matrix: Matrix, **params: Any) -> Picture:
        return _warp_affine(img, matrix, cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: Picture, matrix: Matrix, **params: Any) -> Picture:
        return _warp_affine(mask, matrix, cv2.INTER_NEAREST)


def _warp_affine(pixels: Picture, matrix: Matrix, interpolation: int) -> Picture:
    size = pixels.shape[1], pixels.shape[0]
    return cv2.warpAffine(pixels, matrix[:2], size, flags=interpolation, borderMode=_BORDER)  # type: ignore[return-value]


class CoarseElastic(A.ElasticTransform):  # type: ignore[misc]
    """Elastic deformation by random shifts of a 3 x 3 grid, bicubic in between.

    Ronneberger et al., arXiv:1505.04597, section 3.1. ``spread`` is the standard deviation of the
    grid's shifts, as a fraction of the shorter side.
    """

    def __init__(self, spread: float = 0.02, p: float = 0.5) -> None:
        super().__init__(border_mode=_BORDER, p=p)
        self.spread = spread

    def get_params_dependent_on_data(self, params: Params, data: Params) -> Params:
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


def symmetries() -> A.BasicTransform:
    """Return all symmetries: lesions have no preferred orientation."""
    return Symmetries(p=1.0)


def turn(strength: float, p: float) -> A.BasicTransform:
    """Return rotation about the centre by up to 180 degrees x ``strength``."""
    return Warp(rotate=(-180 * strength, 180 * strength), border_mode=_BORDER, p=p)


def warp(strength: float, p: float) -> A.BasicTransform:
    """Return rotation, zoom (0.3), shift (0.1 of a side) and shear (15 degrees) x ``strength``.

    As one transform, so that the image is resampled once.
    """
    angle, zoom, shift, shear = np.array([180, 0.3, 0.1, 15]) * strength
    return Warp(
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
