"""Random fields and the small arithmetic every layer of the picture shares.

Lengths are shares of the frame's shorter side unless a name ends in `_px`, so that a seed gives
the same kind of picture at every size. Fields are float32.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Field: TypeAlias = NDArray[np.floating[Any]]
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """The picture's size in pixels."""

    height: int
    width: int

    @property
    def unit(self) -> float:
        """The shorter side in pixels: the length that relative lengths are shares of."""
        return float(min(self.height, self.width))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    def grid(self) -> tuple[Field, Field]:
        """Pixel coordinates x (1, W) and y (H, 1), ready to broadcast."""
        x = np.arange(self.width, dtype=np.float32)[None, :]
        y = np.arange(self.height, dtype=np.float32)[:, None]
        return x, y


def within(rng: Generator, limits: Range) -> float:
    """One uniform draw between the two limits."""
    return float(rng.uniform(*limits))


def chance(rng: Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def ramp(values: Field, low: float | Field, high: float | Field) -> Field:
    """Smoothstep: 0 below `low`, 1 above `high`, point-symmetric between; falls if swapped."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return as_field(t * t * (3.0 - 2.0 * t))


def as_field(values: ArrayLike) -> Field:
    """The values as float32, not copied if they are."""
    return np.asarray(values, dtype=np.float32)


def blur(field: Field, sigma_px: float) -> Field:
    """Gaussian blur of an (H, W) or (H, W, C) field; no blur where it would not show."""
    if sigma_px < _FAINTEST_BLUR_PX:
        return field
    return as_field(cv2.GaussianBlur(field, (0, 0), sigma_px))


_FAINTEST_BLUR_PX = 0.2


def white_noise(rng: Generator, shape: tuple[int, ...]) -> Field:
    """Independent values of mean 0 and variance 1; uniform, which any blur makes Gaussian."""
    values = rng.random(shape, dtype=np.float32)
    values -= 0.5
    values *= math.sqrt(12.0)
    return values


# Smooth noise is made where its blur is this many pixels wide and then enlarged: any wider and
# the blur costs more than the enlargement, any narrower and the enlargement shows.
_COARSE_SIGMA_PX = 1.8
_FINEST_SIGMA_PX = 0.4
_MARGIN_PX = 8


def smooth_noise(rng: Generator, frame: Frame, scale: float) -> Field:
    """Stationary isotropic noise (H, W) of unit variance, blurred over `scale`."""
    sigma_px = max(scale * frame.unit, _FINEST_SIGMA_PX)
    shrink = max(sigma_px / _COARSE_SIGMA_PX, 1.0)
    sigma = sigma_px / shrink
    rows, cols = (math.ceil(side / shrink) for side in frame.shape)
    white = white_noise(rng, (rows + 2 * _MARGIN_PX, cols + 2 * _MARGIN_PX))
    inner = (slice(_MARGIN_PX, -_MARGIN_PX), slice(_MARGIN_PX, -_MARGIN_PX))
    # A Gaussian blur leaves white noise a variance of 1 / (4 pi sigma^2), if wider than a pixel.
    soft = blur(white, sigma)[inner] * max(2.0 * math.sqrt(math.pi) * sigma, 1.0)
    if soft.shape == frame.shape:
        return soft
    size = (frame.width, frame.height)
    return as_field(cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC))


def fractal_noise(
    rng: Generator, frame: Frame, scale: float, octaves: int = 3, fall: float = 0.55
) -> Field:
    """Sum of smooth noises, each at half the scale and `fall` the height; unit variance."""
    heights = [fall**octave for octave in range(octaves)]
    total = np.zeros(frame.shape, dtype=np.float32)
    for octave, height in enumerate(heights):
        total += height * smooth_noise(rng, frame, scale / 2**octave)
    return total / math.hypot(*heights)


_SHORTEST_GRAIN_PX = 0.8
_THINNEST_GRAIN_PX = 0.5


def brushed_noise(rng: Generator, frame: Frame, long: float, thin: float, angle: float) -> Field:
    """Noise of grains `long` by `thin` along `angle` (radians), about unit variance."""
    side = math.ceil(math.hypot(*frame.shape)) + 2
    long_px = max(long * frame.unit, _SHORTEST_GRAIN_PX)
    thin_px = max(thin * frame.unit, _THINNEST_GRAIN_PX)
    white = white_noise(rng, (side, side))
    grains = cv2.GaussianBlur(white, (0, 0), sigmaX=long_px, sigmaY=thin_px)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), math.degrees(angle), 1.0)
    turn[0, 2] += (frame.width - side) / 2
    turn[1, 2] += (frame.height - side) / 2
    turned = cv2.warpAffine(grains, turn, (frame.width, frame.height))
    return as_field(turned) * (2.0 * math.sqrt(math.pi * long_px * thin_px))


_NARROWEST_CELL_PX = 2.0


def cells(
    rng: Generator, frame: Frame, spacing: float, jitter: float
) -> tuple[Field, NDArray[np.int32]]:
    """The cells around the points of a shaken hexagonal lattice.

    Returns:
        distance: (H, W) float32, to the nearest point in spacings: 0 to about 0.6.
        cell: (H, W) int32, the number of that point's cell, from 0.
    """
    step = max(spacing * frame.unit, _NARROWEST_CELL_PX)
    rows, cols = (math.ceil(side / step) + 1 for side in frame.shape)
    points = np.stack(np.meshgrid(np.arange(cols), np.arange(rows)), axis=-1).astype(np.float64)
    points[1::2, :, 0] += 0.5
    points = points + rng.uniform(-jitter, jitter, points.shape)
    x, y = np.rint(points.reshape(-1, 2).T * step).astype(np.intp)
    canvas = np.ones(frame.shape, dtype=np.uint8)
    canvas[np.clip(y, 0, frame.height - 1), np.clip(x, 0, frame.width - 1)] = 0
    distance, label = cv2.distanceTransformWithLabels(
        canvas, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return as_field(distance) / step, np.asarray(label, dtype=np.int32) - 1


def per_cell(rng: Generator, cell: NDArray[np.int32], limits: Range = (0.0, 1.0)) -> Field:
    """One uniform draw for each cell, spread over its pixels: (H, W)."""
    return as_field(rng.uniform(*limits, int(cell.max()) + 1))[cell]
