"""Artefacts of dermoscopes and contact gel.

Sizes are fractions of the image's shorter side. Masks do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import albumentations as A
import numpy as np

from lesionseg.augment.drawing import (
    DrawnArtefact,
    Layer,
    Points,
    blur_layer,
    draw_ellipse,
    draw_lines,
    empty_layer,
)
from lesionseg.augment.hair import Hair, HairRemoval


class Ruler(DrawnArtefact):
    """Draws the millimetre marks of a contact plate along one side, every fifth one longer.

    Half of the rulers have a base line. ``strength`` increases size and darkness.
    """

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw the end points ``marks`` [n, 2, 2] and ``line`` width in pixels, ``opacity``."""
        rng = self.random_generator
        gap = rng.uniform(0.02, 0.03 + 0.03 * self.strength)
        x = np.arange(rng.uniform(0, 0.4), rng.uniform(0.6, 1), gap)
        base = rng.uniform(0.02, 0.15) + rng.normal(0, 0.08) * (x - 0.5)
        long = (np.arange(len(x)) + rng.integers(5)) % 5 == 0
        tip = base + gap * np.where(long, 1.6, 0.9)
        marks = np.stack([np.stack([x, base], -1), np.stack([x, tip], -1)], axis=1)
        if rng.random() < 0.5:
            marks = np.concatenate([marks, marks[None, [0, -1], 0]])
        return {
            "marks": _beside(int(rng.integers(4)), marks) * (width, height),
            "line": rng.uniform(0.003, 0.004 + 0.003 * self.strength) * min(height, width),
            "opacity": rng.uniform(0.35, 0.45 + 0.5 * self.strength),
        }

    def layers(
        self, shape: tuple[int, int], marks: Points, line: float, opacity: float, **params: Any
    ) -> Iterator[Layer]:
        """Yield the layer of the marks."""
        layer = empty_layer(shape)
        draw_lines(layer, marks, [line] * len(marks), opacity)
        yield layer, (25, 22, 25)


def _beside(side: int, points: Points) -> Points:
    """Rotate points of the unit square from its upper side to another one of the four."""
    for _ in range(side):
        points = np.stack([1 - points[..., 1], points[..., 0]], axis=-1)
    return points


class Bubbles(DrawnArtefact):
    """Draws air bubbles in the gel: a dark rim, a bright one within it, and a highlight.

    ``strength`` increases number (at most 12) and size (at most a twelfth of the side).
    """

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw ``centres`` [n, 2], ``radii`` [n] in pixels, ``light`` (radians), ``opacity``."""
        rng, size = self.random_generator, min(height, width)
        count = int(rng.integers(1, 4 + round(9 * self.strength)))
        # Uniform on a logarithmic scale: most bubbles are small.
        largest = 0.02 + 0.06 * self.strength
        radii = np.exp(rng.uniform(np.log(0.008), np.log(largest), count)) * size
        return {
            "centres": rng.uniform(0, 1, (count, 2)) * (width, height),
            "radii": np.maximum(radii, 1.0),
            "light": rng.uniform(0, 2 * np.pi),
            "opacity": rng.uniform(0.3, 0.4 + 0.4 * self.strength),
        }

    def layers(
        self,
        shape: tuple[int, int],
        centres: Points,
        radii: Points,
        light: float,
        opacity: float,
        **params: Any,
    ) -> Iterator[Layer]:
        """Yield the layer of the dark parts and that of the bright parts."""
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
    """Darkens the corners outside a round field of view.

    ``strength`` reduces the radius, down to 0.8 of the half diagonal, and the width of the edge.
    """

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw ``centre`` (x, y), ``radius`` and ``edge`` width in pixels, ``dark`` in [0, 1]."""
        rng, half = self.random_generator, float(np.hypot(height, width)) / 2
        soft = rng.uniform(1 - self.strength, 1)
        return {
            "centre": np.array([width, height]) * (0.5 + rng.normal(0, 0.015, 2)),
            "radius": half * rng.uniform(0.97 - 0.17 * self.strength, 0.97),
            # The edge of a tube is sharp and black; the light of a lamp fades gradually.
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
        **params: Any,
    ) -> Iterator[Layer]:
        """Yield the layer outside the field of view."""
        height, width = shape
        x = np.arange(width, dtype=np.float32) - np.float32(centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(centre[1])
        outside = np.clip((np.sqrt(x * x + y * y) - np.float32(radius)) / np.float32(edge), 0, 1)
        yield np.rint(outside * np.float32(255 * dark)).astype(np.uint8), (8, 6, 6)


class Glare(DrawnArtefact):
    """Draws reflections of a lamp on wet skin: soft white spots, close together.

    ``strength`` increases number (at most 9), size (at most a twentieth of the side), opacity.
    """

    def draw(self, height: int, width: int) -> dict[str, Any]:
        """Draw ``centres`` and half ``axes`` [n, 2] in pixels, ``angles`` [n], ``opacity``."""
        rng, size = self.random_generator, min(height, width)
        count = int(rng.integers(1, 4 + round(6 * self.strength)))
        middle = rng.uniform(0.1, 0.9, 2) * (width, height)
        wide = np.maximum(rng.uniform(0.006, 0.01 + 0.04 * self.strength, count) * size, 0.5)
        return {
            "centres": middle + rng.normal(0, 0.08, (count, 2)) * size,
            "axes": np.stack([wide, wide * rng.uniform(0.25, 0.8, count)], axis=1),
            "angles": rng.uniform(0, 180, count),
            "opacity": rng.uniform(0.4, 0.5 + 0.5 * self.strength),
        }

    def layers(
        self,
        shape: tuple[int, int],
        centres: Points,
        axes: Points,
        angles: Points,
        opacity: float,
        **params: Any,
    ) -> Iterator[Layer]:
        """Yield the layer of the reflections."""
        layer = empty_layer(shape)
        for centre, half, angle in zip(centres, axes, angles, strict=True):
            draw_ellipse(layer, centre, half, float(angle), opacity)
        yield blur_layer(layer, 0.008 * min(shape)), (255, 253, 248)


def artefacts(strength: float, share: float = 1.0) -> list[A.BasicTransform]:
    """Return all artefacts in their optical order: hair, gel, plate, tube.

    Args:
        strength: of each artefact, in [0, 1].
        share: scales the probabilities, in [0, 1].
    """
    probabilities = {
        # First, because drawn hair is not to be removed.
        HairRemoval: 0.2,
        Hair: 0.4,
        Bubbles: 0.15,
        Glare: 0.2,
        Ruler: 0.2,
        Vignette: 0.3,
    }
    return [kind(strength, p=p * share) for kind, p in probabilities.items()]
