"""Hair over a lesion: drawn, and removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from lesionseg.augment.drawing import DrawnArtefact, Layer, Picture, Points, empty_layer, draw_lines

#: Along each hair; a quadratic curve is smooth to the eye with these.
_STEPS = np.linspace(0, 1, 14)[:, None]


class Hair(DrawnArtefact):
    """Draws dark, thin, slightly bent hairs that grow roughly one way.

    ``strength`` makes them more, thicker and darker: up to 4 to 28 of them.
    """

    def plan(self, height: int, width: int) -> dict[str, Any]:
        """``curves`` [n, 14, 2] and ``widths`` [n] in pixels, ``colour`` and ``opacity``."""
        draw, size = self.random_generator, min(height, width)
        count = int(draw.integers(2, 5 + round(24 * self.strength)))
        start = draw.uniform(-0.1, 1.1, (count, 2)) * (width, height)
        angle = draw.uniform(0, 2 * np.pi) + draw.normal(0, 0.5, count)
        along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        reach = along * draw.uniform(0.25, 0.9, (count, 1)) * size
        bend = along[:, ::-1] * (-1, 1) * draw.normal(0, 0.12, (count, 1)) * size
        return {
            "curves": _curves(start, start + reach / 2 + bend, start + reach),
            "widths": draw.uniform(0.0025, 0.0035 + 0.0035 * self.strength, count) * size,
            "colour": np.array([60, 42, 36]) * draw.uniform(0.3, 1.2),
            "opacity": draw.uniform(0.4, 0.55 + 0.4 * self.strength),
        }

    def layers(
        self,
        shape: tuple[int, int],
        curves: Points,
        widths: Points,
        colour: Points,
        opacity: float,
        **planned: Any,
    ) -> Iterator[Layer]:
        """The planned hairs."""
        drawn = empty_layer(shape)
        draw_lines(drawn, curves, widths, opacity)
        yield drawn, colour


def _curves(start: Points, control: Points, end: Points) -> Points:
    """Quadratic Bezier curves [n, steps, 2] of three points [n, 2] each."""
    t, (a, b, c) = _STEPS, (p[:, None] for p in (start, control, end))
    return np.asarray((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)


class HairRemoval(DrawnArtefact):
    """Removes dark thin hairs as DullRazor does; Lee et al. 1997, 10.1016/S0010-4825(97)00020-6.

    Lines darker than both their sides are found by the black-hat transform (closing minus
    image), kept where they are long, and filled in from their surroundings. Networks trained
    on pictures with and without hair learn to do without it. ``strength`` lets fainter lines go.
    """

    def plan(self, height: int, width: int) -> dict[str, Any]:
        """``threshold``: by how many grey levels a line must be darker than its sides."""
        faintest = 32 - 16 * self.strength
        return {"threshold": self.random_generator.uniform(faintest, faintest + 10)}

    def apply(self, img: Picture, threshold: float, **params: Any) -> Picture:
        """The image without the lines."""
        found = _long_dark_lines(img, threshold)
        return cv2.inpaint(img, found, 2, cv2.INPAINT_TELEA) if found.any() else img  # type: ignore[return-value]


def _long_dark_lines(image: Picture, threshold: float) -> Picture:
    """Layer [H, W] in {0, 255} of the lines and the pixel around them."""
    size = min(image.shape[:2])
    # Wider than any hair, narrower than the streaks of a lesion.
    across = max(3, round(0.05 * size) | 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (across, across))
    darker = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, square) > threshold
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(darker.astype(np.uint8))
    long = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) > 0.12 * size
    long[0] = False  # the background
    # A hair's edge is half skin: filled in from it, the hair would come back as a shadow.
    return cv2.dilate(long.astype(np.uint8)[labels] * 255, np.ones((3, 3)))  # type: ignore[return-value]
