"""What dermoscopes and the gel under them add to a picture of skin.

Sizes are parts of the shorter side, so that a picture looks alike at every resolution. Nothing
here changes the mask: the lesion is where it was, seen or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import albumentations as A
import numpy as np

from lesionseg.augment.drawing import DrawnArtefact, Layer, Points, draw_ellipse, empty_layer, draw_lines, blur_layer
from lesionseg.augment.hair import Hair, HairRemoval


class Ruler(DrawnArtefact):
    """Draws the millimetre marks of a contact plate along one side, every fifth one longer.

    Every second ruler has a base line. ``strength`` makes all larger and darker.
    """

    def plan(self, height: int, width: int) -> dict[str, Any]:
        """``marks`` [n, 2, 2]: both ends of each in pixels; ``line`` in pixels; ``opacity``."""
        draw = self.random_generator
        gap = draw.uniform(0.02, 0.03 + 0.03 * self.strength)
        x = np.arange(draw.uniform(0, 0.4), draw.uniform(0.6, 1), gap)
        base = draw.uniform(0.02, 0.15) + draw.normal(0, 0.08) * (x - 0.5)
        long = (np.arange(len(x)) + draw.integers(5)) % 5 == 0
        tip = base + gap * np.where(long, 1.6, 0.9)
        marks = np.stack([np.stack([x, base], -1), np.stack([x, tip], -1)], axis=1)
        if draw.random() < 0.5:
            marks = np.concatenate([marks, marks[None, [0, -1], 0]])
        return {
            "marks": _beside(int(draw.integers(4)), marks) * (width, height),
            "line": draw.uniform(0.003, 0.004 + 0.003 * self.strength) * min(height, width),
            "opacity": draw.uniform(0.35, 0.45 + 0.5 * self.strength),
        }

    def layers(
        self, shape: tuple[int, int], marks: Points, line: float, opacity: float, **planned: Any
    ) -> Iterator[Layer]:
        """The planned marks."""
        drawn = empty_layer(shape)
        draw_lines(drawn, marks, [line] * len(marks), opacity)
        yield drawn, (25, 22, 25)


def _beside(side: int, points: Points) -> Points:
    """Points of the unit square near its upper side, turned to the ``side``-th of the four."""
    for _ in range(side):
        points = np.stack([1 - points[..., 1], points[..., 0]], axis=-1)
    return points


class Bubbles(DrawnArtefact):
    """Draws air bubbles in the gel: a dark rim, a bright one within it, and a highlight.

    ``strength`` makes them more and larger: up to 12, of up to a twelfth of the side.
    """

    def plan(self, height: int, width: int) -> dict[str, Any]:
        """``centres`` [n, 2] and ``radii`` [n] in pixels, ``light`` (radians), ``opacity``."""
        draw, size = self.random_generator, min(height, width)
        count = int(draw.integers(1, 4 + round(9 * self.strength)))
        # Small ones are many: evenly on a logarithmic scale.
        largest = 0.02 + 0.06 * self.strength
        radii = np.exp(draw.uniform(np.log(0.008), np.log(largest), count)) * size
        return {
            "centres": draw.uniform(0, 1, (count, 2)) * (width, height),
            "radii": np.maximum(radii, 1.0),
            "light": draw.uniform(0, 2 * np.pi),
            "opacity": draw.uniform(0.3, 0.4 + 0.4 * self.strength),
        }

    def layers(
        self,
        shape: tuple[int, int],
        centres: Points,
        radii: Points,
        light: float,
        opacity: float,
        **planned: Any,
    ) -> Iterator[Layer]:
        """The planned bubbles: what is dark of them, and what is bright."""
        dark, bright = empty_layer(shape), empty_layer(shape)
        toward = np.array([np.cos(light), np.sin(light)])
        for centre, radius in zip(centres, radii, strict=True):
            round_ = np.array([radius, radius])
            draw_ellipse(bright, centre, round_, 0, 0.15 * opacity)
            draw_ellipse(dark, centre, round_, 0, 0.45 * opacity, width=0.1 * radius)
            draw_ellipse(bright, centre, 0.86 * round_, 0, 0.45 * opacity, width=0.14 * radius)
            draw_ellipse(bright, centre + 0.5 * radius * toward, 0.17 * round_, 0, opacity)
        sigma = 0.002 * min(shape)
        yield blur_layer(dark, sigma), (45, 35, 35)
        yield blur_layer(bright, sigma), (255, 252, 248)


class Vignette(DrawnArtefact):
    """Darkens what lies outside a round field of view, near the corners.

    ``strength`` makes the field smaller, down to 0.8 of the half diagonal, and its edge sharper.
    """

    def plan(self, height: int, width: int) -> dict[str, Any]:
        """``centre`` (x, y), ``radius`` and ``edge`` (its width) in pixels, ``dark`` in [0, 1]."""
        draw, half = self.random_generator, float(np.hypot(height, width)) / 2
        soft = draw.uniform(1 - self.strength, 1)
        return {
            "centre": np.array([width, height]) * (0.5 + draw.normal(0, 0.015, 2)),
            "radius": half * draw.uniform(0.97 - 0.17 * self.strength, 0.97),
            # A tube's edge is sharp and black behind; a lamp's light fades, and never wholly.
            "edge": half * 0.01 * 40**soft,
            "dark": 0.97 - 0.4 * soft,
        }

    def layers(
        self,
        shape: tuple[int, int],
        centre: Points,
        radius: float,
        edge: float,
        dark: float,
        **planned: Any,
    ) -> Iterator[Layer]:
        """What lies outside the planned field."""
        height, width = shape
        x = np.arange(width, dtype=np.float32) - np.float32(centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(centre[1])
        outside = np.clip((np.sqrt(x * x + y * y) - np.float32(radius)) / np.float32(edge), 0, 1)
        yield np.rint(outside * np.float32(255 * dark)).astype(np.uint8), (8, 6, 6)


class Glare(DrawnArtefact):
    """Draws the white reflections of a lamp on wet skin: soft spots, close together.

    ``strength`` makes them more, larger and whiter: up to 9, of up to a twentieth of the side.
    """

    def plan(self, height: int, width: int) -> dict[str, Any]:
        """``centres`` and half ``axes`` [n, 2] in pixels, ``angles`` [n], ``opacity``."""
        draw, size = self.random_generator, min(height, width)
        count = int(draw.integers(1, 4 + round(6 * self.strength)))
        middle = draw.uniform(0.1, 0.9, 2) * (width, height)
        wide = np.maximum(draw.uniform(0.006, 0.01 + 0.04 * self.strength, count) * size, 0.5)
        return {
            "centres": middle + draw.normal(0, 0.08, (count, 2)) * size,
            "axes": np.stack([wide, wide * draw.uniform(0.25, 0.8, count)], axis=1),
            "angles": draw.uniform(0, 180, count),
            "opacity": draw.uniform(0.4, 0.5 + 0.5 * self.strength),
        }

    def layers(
        self,
        shape: tuple[int, int],
        centres: Points,
        axes: Points,
        angles: Points,
        opacity: float,
        **planned: Any,
    ) -> Iterator[Layer]:
        """The planned reflections."""
        drawn = empty_layer(shape)
        for centre, half, angle in zip(centres, axes, angles, strict=True):
            draw_ellipse(drawn, centre, half, float(angle), opacity)
        yield blur_layer(drawn, 0.008 * min(shape)), (255, 253, 248)


def artefacts(strength: float, share: float = 1.0) -> list[A.BasicTransform]:
    """All of them in the order in which light meets them: hair, gel, plate, tube.

    Args:
        strength: of each, in [0, 1].
        share: scales how often each comes, in [0, 1].
    """
    often = {
        # First, so that it finds the picture's own hair and never that which is drawn.
        HairRemoval: 0.2,
        Hair: 0.4,
        Bubbles: 0.15,
        Glare: 0.2,
        Ruler: 0.2,
        Vignette: 0.3,
    }
    return [kind(strength, p=p * share) for kind, p in often.items()]
