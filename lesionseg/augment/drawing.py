"""Drawing of artefacts as opacity layers that are painted over an image.

A layer is uint8 [H, W]: 0 is transparent, 255 is opaque.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Params = dict[str, Any]
Picture = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = Iterable[float]
Layer = tuple[Picture, Colour]

#: Fractional bits of the coordinates passed to OpenCV.
_FRACTION_BITS = 4


class DrawnArtefact(A.ImageOnlyTransform):  # type: ignore[misc]
    """A transform of the image alone whose layers depend only on the image's size.

    Args:
        strength: scales the effect, in [0, 1].
        p: probability.
    """

    def __init__(self, strength: float = 0.5, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params_dependent_on_data(self, params: Params, data: Params) -> Params:
        return {"layers": self.draw(*params["shape"][:2])}

    @abstractmethod
    def draw(self, height: int, width: int) -> list[Layer]:
        """Draw random layers in painting order."""

    def apply(self, img: Picture, layers: list[Layer], **params: Any) -> Picture:
        for layer, colour in layers:
            img = paint_layer(img, layer, colour)
        return img


def empty_layer(height: int, width: int) -> Picture:
    """Return a transparent layer."""
    return np.zeros((height, width), np.uint8)


def draw_lines(
    layer: Picture, curves: Iterable[Points], widths: Iterable[float], opacity: float
) -> None:
    """Draw lines on a layer.

    Args:
        layer: uint8 [H, W], changed in place.
        curves: the (x, y) in pixels of each line, [n, 2].
        widths: width of each line in pixels; below 1, a line of one pixel with less opacity.
        opacity: in [0, 1].
    """
    for curve, width in zip(curves, widths, strict=True):
        shade = round(255 * opacity * min(1.0, width))
        points = np.round(curve * 2**_FRACTION_BITS).astype(np.int32)
        thickness = max(1, round(width))
        cv2.polylines(layer, [points], False, shade, thickness, cv2.LINE_AA, _FRACTION_BITS)


def draw_ellipse(
    layer: Picture, centre: Points, axes: Points, angle: float, opacity: float, width: float = 0
) -> None:
    """Draw an ellipse on a layer.

    Args:
        layer: uint8 [H, W], changed in place.
        centre: (x, y) in pixels.
        axes: the two half axes in pixels.
        angle: of the first axis, in degrees.
        opacity: in [0, 1].
        width: width of the line in pixels; 0 fills the ellipse.
    """
    x_y, half = (tuple(int(v) for v in np.round(a * 2**_FRACTION_BITS)) for a in (centre, axes))
    shade = round(255 * opacity * (min(1.0, width) if width else 1.0))
    thickness = max(1, round(width)) if width else -1
    cv2.ellipse(layer, x_y, half, angle, 0, 360, shade, thickness, cv2.LINE_AA, _FRACTION_BITS)


def blur_layer(layer: Picture, sigma: float) -> Picture:
    """Blur a layer by ``sigma`` pixels; below a third of a pixel, return it unchanged."""
    return layer if sigma < 1 / 3 else cv2.GaussianBlur(layer, (0, 0), sigma)  # type: ignore[return-value]


def paint_layer(image: Picture, layer: Picture, colour: Colour) -> Picture:
    """Paint a colour (three values in [0, 255]) over an image with the layer's opacity."""
    # In 8-bit integers, which OpenCV computes several times faster than NumPy does floats.
    transparency = cv2.cvtColor(cv2.bitwise_not(layer), cv2.COLOR_GRAY2RGB)
    cover = cv2.merge([cv2.convertScaleAbs(layer, alpha=c / 255) for c in colour])
    return cv2.add(cv2.multiply(image, transparency, scale=1 / 255), cover)  # type: ignore[return-value]
