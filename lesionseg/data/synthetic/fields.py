"""Random fields and drawings. Lengths are relative to the shorter side unless named ``_px``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Field = NDArray[np.floating[Any]]  # float32 [H, W] unless stated otherwise
Points = NDArray[np.float64]  # [N, 2], x and y in pixels
Range = tuple[float, float]
T = TypeVar("T")


def as_field(values: ArrayLike) -> Field:
    """Convert to float32."""
    return np.asarray(values, dtype=np.float32)


def smoothstep(values: Field, low: float | Field, high: float | Field) -> Field:
    """Interpolate smoothly from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return as_field(t * t * (3.0 - 2.0 * t))


def blend(image: Field, opacity: Field, colour: ArrayLike) -> Field:
    """Blend an image [H, W, 3] with a colour [3] at an opacity [H, W]."""
    return as_field(image + opacity[..., None] * (as_field(colour) - image))


def circle_points(angles: Points, radius_px: float | Points) -> Points:
    """Return the points at some angles around the origin."""
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return np.asarray(unit * np.asarray(radius_px)[..., None])


class FieldSampler:
    """Random numbers, fields and drawings for one image size."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.shape, self.size_px = (height, width), np.array([width, height])
        self.unit_px = float(min(height, width))

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choice(self, items: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Draw an item, optionally with relative weights."""
        p = None if weights is None else np.asarray(weights) / np.sum(weights)
        return items[int(self.rng.choice(len(items), p=p))]

    def grid(self, origin_px: ArrayLike) -> tuple[Field, Field]:
        """Return x [1, W] and y [H, 1] in pixels, relative to an origin."""
        x_px, y_px = np.asarray(origin_px)
        y, x = np.ogrid[: self.height, : self.width]
        return as_field(x - x_px), as_field(y - y_px)

    def blur(self, field: Field, scale: float) -> Field:
        """Blur a field [H, W] or [H, W, C] by a Gaussian."""
        sigma_px = scale * self.unit_px
        return field if sigma_px < 0.2 else as_field(cv2.GaussianBlur(field, (0, 0), sigma_px))

    def white_noise(self, *shape: int) -> Field:
        """Return uniform noise of mean 0 and variance 1."""
        return (self.rng.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(12**0.5)

    def noise(self, scale: float, octaves: int = 1, falloff: float = 0.6) -> Field:
        """Return Gaussian noise of unit variance.

        Args:
            scale: width of the blur. Wide blurs are computed at a lower resolution.
            octaves: number of noises that are added, each at half the scale of the one before.
            falloff: ratio of their amplitudes.
        """
        total, variance = np.zeros(self.shape, dtype=np.float32), 0.0
        for octave in range(octaves):
            sigma_px = max(scale * self.unit_px / 2**octave, 0.4)
            shrink = max(sigma_px / 1.8, 1.0)
            rows, columns = (math.ceil(side / shrink) for side in self.shape)
            white = self.white_noise(rows + 16, columns + 16)
            soft = cv2.GaussianBlur(white, (0, 0), sigma_px / shrink)[8:-8, 8:-8]
            # The variance of blurred white noise is 1 / (4 pi sigma^2).
            soft *= falloff**octave * max(2.0 * math.sqrt(math.pi) * sigma_px / shrink, 1.0)
            total += cv2.resize(soft, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
            variance += falloff ** (2 * octave)
        return total / np.float32(math.sqrt(variance))

    def cells(self, spacing: float, jitter: float = 0.45) -> tuple[Field, NDArray[np.int32]]:
        """Return the Voronoi cells of a jittered hexagonal lattice.

        Returns:
            Distance to the nearest center in spacings (about 0 to 0.6), and the cell's number.
        """
        step_px = max(spacing * self.unit_px, 2.0)
        rows, columns = (math.ceil(side / step_px) + 1 for side in self.shape)
        lattice = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1) + 0.0
        lattice[1::2, :, 0] += 0.5
        lattice += self.rng.uniform(-jitter, jitter, lattice.shape)
        x, y = np.rint(lattice.reshape(-1, 2).T * step_px).astype(np.intp)
        seeds = np.ones(self.shape, dtype=np.uint8)
        seeds[np.clip(y, 0, self.height - 1), np.clip(x, 0, self.width - 1)] = 0
        distance, label = cv2.distanceTransformWithLabels(
            seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        return as_field(distance) / step_px, np.asarray(label, dtype=np.int32) - 1

    def per_cell(self, label: NDArray[np.int32], low: float = 0.0, high: float = 1.0) -> Field:
        """Draw a number per cell and return it at all pixels of the cell."""
        return as_field(self.rng.uniform(low, high, int(label.max()) + 1))[label]

    def draw(self, shapes: Sequence[Points], opacities: ArrayLike, width: float = 0.0) -> Field:
        """Draw polylines, or filled polygons without a width; return the opacity [H, W]."""
        canvas = np.zeros((2 * self.height, 2 * self.width), dtype=np.uint8)  # antialiasing
        thickness = max(round(2 * width * self.unit_px), 1)
        for points, opacity in zip(shapes, np.broadcast_to(opacities, len(shapes)), strict=True):
            ink = round(255 * float(opacity))
            path = np.rint(points * 32.0).astype(np.int32)  # 4 fractional bits
            if width:
                cv2.polylines(canvas, [path], False, ink, thickness, cv2.LINE_AA, 4)
            else:
                cv2.fillPoly(canvas, [path], ink, cv2.LINE_AA, 4)
        size = (self.width, self.height)
        return as_field(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)) / 255.0
