"""Hair: drawn and removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from lesionseg.augment.drawing import DrawnArtefact, Layer, Picture, Points, draw_lines, empty_layer

#: Parameters of the points of each curve.
_STEPS = np.linspace(0, 1, 14)[:, None]


class Hair(DrawnArtefact):
    """Draws dark, thin, slightly bent hairs of similar direction.

    ``strength`` increases number (at most 4 to 28), width and darkness.
    """

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw ``curves`` [n, 14, 2] and ``widths`` [n] in pixels, ``colour`` and ``opacity``."""
        rng, size = self.random_generator, min(height, width)
        count = int(rng.integers(2, 5 + round(24 * self.strength)))
        start = rng.uniform(-0.1, 1.1, (count, 2)) * (width, height)
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.5, count)
        along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        reach = along * rng.uniform(0.25, 0.9, (count, 1)) * size
        bend = along[:, ::-1] * (-1, 1) * rng.normal(0, 0.12, (count, 1)) * size
        return {
            "curves": _curves(start, start + reach / 2 + bend, start + reach),
            "widths": rng.uniform(0.0025, 0.0035 + 0.0035 * self.strength, count) * size,
            "colour": np.array([60, 42, 36]) * rng.uniform(0.3, 1.2),
            "opacity": rng.uniform(0.4, 0.55 + 0.4 * self.strength),
        }

    def layers(
        self,
        shape: tuple[int, int],
        curves: Points,
        widths: Points,
        colour: Points,
        opacity: float,
        **params: Any,
    ) -> Iterator[Layer]:
        """Yield the layer of the hairs."""
        layer = empty_layer(shape)
        draw_lines(layer, curves, widths, opacity)
        yield layer, colour


def _curves(start: Points, control: Points, end: Points) -> Points:
    """Return quadratic Bezier curves [n, 14, 2] of three points [n, 2] each."""
    t, (a, b, c) = _STEPS, (p[:, None] for p in (start, control, end))
    return np.asarray((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)


class HairRemoval(DrawnArtefact):
    """Removes dark thin hairs as DullRazor does; Lee et al. 1997, 10.1016/S0010-4825(97)00020-6.

    Long lines darker than both their sides are found by the black-hat transform (closing minus
    image) and inpainted. ``strength`` lowers the contrast from which on lines are removed.
    """

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw ``threshold``: by how many grey levels a line must be darker than its sides."""
        faintest = 32 - 16 * self.strength
        return {"threshold": self.random_generator.uniform(faintest, faintest + 10)}

    def apply(self, img: Picture, threshold: float, **params: Any) -> Picture:
        """Remove the lines from the image."""
        lines = _long_dark_lines(img, threshold)
        return cv2.inpaint(img, lines, 2, cv2.INPAINT_TELEA) if lines.any() else img  # type: ignore[return-value]


def _long_dark_lines(image: Picture, threshold: float) -> Picture:
    """Return a layer [H, W] in {0, 255} of the lines, dilated by one pixel."""
    size = min(image.shape[:2])
    # Wider than hairs, narrower than the streaks of a lesion.
    width = max(3, round(0.05 * size) | 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (width, width))
    darker = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, square) > threshold
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(darker.astype(np.uint8))
    long = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) > 0.12 * size
    long[0] = False  # the background
    # Inpainting from a hair's edge, which is half hair, would leave a shadow.
    return cv2.dilate(long.astype(np.uint8)[labels] * 255, np.ones((3, 3)))  # type: ignore[return-value]
