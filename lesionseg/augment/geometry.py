"""Changes of place: the image and its mask move together.

Masks are read at the nearest pixel, so that they stay in {0, 1}. What comes in from outside is
the picture mirrored at its border: skin goes on beyond it, and a black corner would be a cue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.augment.drawing import Picture

Matrix = NDArray[np.float64]

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

    def apply(self, img: Picture, group_element: str, **params: Any) -> Picture:
        """The image, turned or mirrored; [H, W] or [H, W, 3]."""
        turned: Picture = SYMMETRIES[group_element](img)
        return turned

    def apply_to_mask(self, mask: Picture, group_element: str, **params: Any) -> Picture:
        """The mask alike."""
        return self.apply(mask, group_element)


#: OpenCV's flips and turns copy; numpy's give views, which the next transform would have to copy.
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
    """An affine change, with the same draws and result as its parent and a third of its cost.

    On small pictures most of the time goes to what the parent makes ready for boxes and points.
    """

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """``matrix`` [3, 3]: where each pixel (x, y, 1) goes."""
        height, width = params["shape"][:2]
        shift = self._get_translate_params((height, width))
        shear = self._get_shear_params()
        zoom = self._get_scale(self.scale, self.keep_ratio, self.balanced_scale, self.py_random)
        turn = math.radians(self.py_random.uniform(*self.rotate))
        sin, cos = math.sin(turn), math.cos(turn)
        along, across = (math.tan(math.radians(shear[axis])) for axis in "xy")
        # Zoomed, turned, sheared: all about the centre.
        a, b = zoom["x"] * (cos - along * sin), zoom["y"] * (sin + along * cos)
        c, d = zoom["x"] * (across * cos - sin), zoom["y"] * (across * sin + cos)
        x, y = (width - 1) / 2, (height - 1) / 2
        to_x, to_y = x + shift["x"] - a * x - b * y, y + shift["y"] - c * x - d * y
        return {"matrix": np.array([[a, b, to_x], [c, d, to_y], [0.0, 0.0, 1.0]])}

    def apply(self, img: Picture, matrix: Matrix, **params: Any) -> Picture:
        """The image [H, W, 3], read in between pixels."""
        return _warped(img, matrix, cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: Picture, matrix: Matrix, **params: Any) -> Picture:
        """The mask [H, W], read at the nearest pixel."""
        return _warped(mask, matrix, cv2.INTER_NEAREST)


def _warped(picture: Picture, matrix: Matrix, reading: int) -> Picture:
    size = picture.shape[1], picture.shape[0]
    return cv2.warpAffine(picture, matrix[:2], size, flags=reading, borderMode=_BORDER)  # type: ignore[return-value]


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
        grid = self.shifts(height, width).astype(np.float32)
        shift = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        return {
            "map_x": shift[..., 0] + np.arange(width, dtype=np.float32),
            "map_y": shift[..., 1] + np.arange(height, dtype=np.float32)[:, None],
        }

    def shifts(self, height: int, width: int) -> NDArray[np.float64]:
        """[3, 3, 2]: what the grid's points are shifted by, along x and y, in pixels."""
        spread = self.spread * min(height, width)
        drawn: NDArray[np.float64] = self.random_generator.normal(0, spread, (3, 3, 2))
        return drawn


def flips() -> list[A.BasicTransform]:
    """Horizontal and vertical flips, each of every second image."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def symmetries() -> A.BasicTransform:
    """A lesion looks the same from every side: all symmetries are fair, at every strength."""
    return Symmetries(p=1.0)


def turn(strength: float, p: float) -> A.BasicTransform:
    """A turn about the centre by up to 180 degrees x ``strength``."""
    return Warp(rotate=(-180 * strength, 180 * strength), border_mode=_BORDER, p=p)


def warp(strength: float, p: float) -> A.BasicTransform:
    """Turn, zoom (up to 0.3), shift (0.1 of a side) and shear (15 degrees), times ``strength``.

    One transform rather than four: the picture is resampled once.
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
    """A coarse elastic change; 0.5 is the U-Net paper's (10 of 512 pixels)."""
    return CoarseElastic(spread=0.04 * strength, p=p)
