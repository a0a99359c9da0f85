"""Drawing thin things: an opacity canvas at twice the picture's size, shrunk when done."""

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.synthetic._fields import Field, Frame, as_field

# Twice the size in each direction gives lines thinner than a pixel their share of it.
_SCALE = 2
_SHIFT = 4
_SUBPIXEL = 1 << _SHIFT


class Canvas:
    """A one-channel opacity drawing; coordinates and widths are given in picture pixels."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._pixels = np.zeros((_SCALE * frame.height, _SCALE * frame.width), dtype=np.uint8)

    def lines(self, points: NDArray[np.float64], width_px: float, opacity: float = 1.0) -> None:
        """Open polylines (N, K, 2) of one width."""
        thickness = max(round(_SCALE * width_px), 1)
        ink = self._ink(opacity)
        paths = list(self._fixed(points))
        cv2.polylines(self._pixels, paths, False, ink, thickness, cv2.LINE_AA, _SHIFT)

    def polygon(self, points: NDArray[np.float64], opacity: float = 1.0) -> None:
        """One filled polygon (K, 2)."""
        cv2.fillPoly(self._pixels, [self._fixed(points)], self._ink(opacity), cv2.LINE_AA, _SHIFT)

    def circle(
        self, centre: tuple[float, float], radius_px: float, width_px: float, opacity: float = 1.0
    ) -> None:
        """A ring of the given width."""
        thickness = max(round(_SCALE * width_px), 1)
        x, y, radius = (round(_SCALE * _SUBPIXEL * value) for value in (*centre, radius_px))
        ink = self._ink(opacity)
        cv2.circle(self._pixels, (x, y), radius, ink, thickness, cv2.LINE_AA, _SHIFT)

    def opacity(self) -> Field:
        """What has been drawn, (H, W) float32 in 0..1."""
        size = (self._frame.width, self._frame.height)
        small = cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA)
        return as_field(small) / 255.0

    @staticmethod
    def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.rint(points * (_SCALE * _SUBPIXEL)).astype(np.int32)

    @staticmethod
    def _ink(opacity: float) -> tuple[int]:
        return (round(255 * opacity),)


def lay_over(image: Field, opacity: Field, colour: Field) -> Field:
    """The image (H, W, 3) with a colour, (3,) or (H, W, 3), laid over it at an opacity (H, W)."""
    covered = image + opacity[..., None] * (colour - image)
    return as_field(covered)


def rgb(red: float, green: float, blue: float) -> Field:
    """A colour, (3,) float32."""
    return np.array([red, green, blue], dtype=np.float32)
