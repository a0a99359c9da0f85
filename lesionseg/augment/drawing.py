"""What all drawn artefacts share: layers of opacity, painted over an image.

A layer is [H, W] uint8; 0 leaves the image as it is, 255 hides it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = Iterable[float]
Layer = tuple[Picture, Colour]

#: OpenCV draws at whole pixels unless told how many bits of a coordinate are fraction.
_BITS = 4


class DrawnArtefact(A.ImageOnlyTransform):  # type: ignore[misc]
    """A change of the image alone, planned from its size; masks pass through untouched.

    Args:
        strength: how much it changes, in [0, 1].
        p: how often it comes.
    """

    def __init__(self, strength: float = 0.5, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """All that is random, drawn here so that the seed fixes it."""
        height, width = params["shape"][:2]
        return self.plan(height, width)

    @abstractmethod
    def plan(self, height: int, width: int) -> dict[str, Any]:
        """The random parameters of ``layers`` for an image of that size in pixels."""

    def layers(self, *args: Any, **planned: Any) -> Iterator[Layer]:
        """What was planned, each layer with its colour, in the order in which they are painted.

        The same number of them whatever was drawn. They follow from ``shape``, the height and
        width, and from the plan alone.
        """
        raise NotImplementedError

    def apply(self, img: Picture, *args: Any, **params: Any) -> Picture:
        """The image with the planned layers painted over it."""
        for on, colour in self.layers(**params | {"shape": img.shape[:2]}):
            img = paint_layer(img, on, colour)
        return img


def empty_layer(shape: tuple[int, ...]) -> Picture:
    """An empty layer of that height and width."""
    return np.zeros(shape[:2], np.uint8)


def draw_lines(on: Picture, curves: Iterable[Points], widths: Iterable[float], opacity: float) -> None:
    """Draws curves [n, 2] of (x, y) in pixels, each of its width in pixels, on a layer.

    A line thinner than a pixel is drawn a pixel wide and fainter.
    """
    for curve, width in zip(curves, widths, strict=True):
        shade = round(255 * opacity * min(1.0, width))
        points = np.round(curve * 2**_BITS).astype(np.int32)
        cv2.polylines(on, [points], False, shade, max(1, round(width)), cv2.LINE_AA, _BITS)


def draw_ellipse(
    on: Picture, centre: Points, axes: Points, angle: float, opacity: float, width: float = 0
) -> None:
    """Draws an ellipse on a layer, filled where ``width`` is 0.

    Args:
        on: the layer.
        centre: (x, y) in pixels.
        axes: the two half axes in pixels.
        angle: of the first axis, in degrees.
        opacity: in [0, 1].
        width: of the line, in pixels.
    """
    at, half = (tuple(int(v) for v in np.round(a * 2**_BITS)) for a in (centre, axes))
    shade = round(255 * opacity * (min(1.0, width) if width else 1.0))
    thickness = max(1, round(width)) if width else -1
    cv2.ellipse(on, at, half, angle, 0, 360, shade, thickness, cv2.LINE_AA, _BITS)


def blur_layer(on: Picture, sigma: float) -> Picture:
    """The layer with its edges blurred by ``sigma`` pixels; unchanged below a third of one."""
    return on if sigma < 1 / 3 else cv2.GaussianBlur(on, (0, 0), sigma)  # type: ignore[return-value]


def paint_layer(image: Picture, on: Picture, colour: Colour) -> Picture:
    """The image with a colour (three values in [0, 255]) over it where the layer is opaque."""
    # Whole numbers of eight bits: OpenCV does them several times faster than numpy does floats.
    rest = cv2.cvtColor(cv2.bitwise_not(on), cv2.COLOR_GRAY2RGB)
    cover = cv2.merge([cv2.convertScaleAbs(on, alpha=c / 255) for c in colour])
    return cv2.add(cv2.multiply(image, rest, scale=1 / 255), cover)  # type: ignore[return-value]
