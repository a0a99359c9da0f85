"""The lesion's outline: where it lies, how deep inside it each pixel is, and its soft edge."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    as_field,
    chance,
    fractal_noise,
    ramp,
    smooth_noise,
    within,
)

_Point = tuple[float, float]


@dataclass(frozen=True)
class Outline:
    """A lesion's place and extent.

    Attributes:
        mask: (H, W) bool, never empty, one piece without holes.
        inside_px: (H, W) float32, distance to the contour in pixels, negative outside; at most
            the frame's diagonal, which it is all over where a lesion fills the frame.
        coverage: (H, W) float32 in 0..1, above one half exactly where `mask` is set.
        radius_px: the radius of the disc of the lesion's nominal area.
        centre_px: (x, y), the nominal centre.
    """

    mask: NDArray[np.bool_]
    inside_px: Field
    coverage: Field
    radius_px: float
    centre_px: _Point

    def depth(self) -> Field:
        """Distance inwards from the contour in radii, (H, W) in 0..1; 0 outside."""
        return as_field(np.clip(self.inside_px / self.radius_px, 0.0, 1.0))


def draw_outline(rng: Generator, frame: Frame, raggedness: float, softness: float) -> Outline:
    """Draw a lesion's outline.

    Args:
        rng: source of randomness.
        frame: the picture's size.
        raggedness: 0 for a smooth oval, 1 for a wildly irregular border.
        softness: half the width of the edge as a share of the radius.
    """
    radius_px = _draw_radius(rng, frame)
    centre_px = _draw_centre(rng, frame)
    raw = _shape_level(rng, frame, radius_px, centre_px, raggedness) > 0.0
    mask = _one_piece(raw, centre_px)
    inside_px = _signed_distance(mask)
    edge_px = min(softness * radius_px, _SOFTEST * frame.unit)
    coverage = _soften(rng, frame, inside_px, edge_px)
    return Outline(mask, inside_px, coverage, radius_px, centre_px)


# Area as a share of the frame. Above one, the lesion is larger than what the camera shows.
_AREA_MEDIAN = 0.165
_AREA_SPREAD = 1.08
_AREA: Range = (0.010, 1.7)
_SMALLEST_RADIUS_PX = 2.5


def _draw_radius(rng: Generator, frame: Frame) -> float:
    share = float(np.clip(_AREA_MEDIAN * rng.lognormal(0.0, _AREA_SPREAD), *_AREA))
    return max(math.sqrt(share * frame.height * frame.width / math.pi), _SMALLEST_RADIUS_PX)


_OFFSET = 0.04
_STRAY_CHANCE = 0.12
_STRAY_OFFSET = 0.14
_CENTRE: Range = (0.12, 0.88)


def _draw_centre(rng: Generator, frame: Frame) -> _Point:
    """Photographers centre the lesion, mostly."""
    spread = _STRAY_OFFSET if chance(rng, _STRAY_CHANCE) else _OFFSET
    x, y = np.clip(rng.normal(0.5, spread, 2), *_CENTRE)
    return float(x) * (frame.width - 1), float(y) * (frame.height - 1)


_ROUGH_SCALE = 0.085
_ROUGH = 0.09


def _shape_level(
    rng: Generator, frame: Frame, radius_px: float, centre_px: _Point, raggedness: float
) -> Field:
    """A field (H, W) that is positive inside the lesion: a warped, lobed, roughened ellipse."""
    relative = radius_px / frame.unit
    u, v = _ellipse_coordinates(rng, frame, radius_px, centre_px)
    u = u + raggedness * _warp(rng, frame, relative, centre_px)
    v = v + raggedness * _warp(rng, frame, relative, centre_px)
    rough = fractal_noise(rng, frame, _ROUGH_SCALE * relative, octaves=3, fall=0.7)
    reach = _reach(rng, np.arctan2(v, u), raggedness)
    return reach - np.hypot(u, v) + raggedness * _ROUGH * rough


_WARP_SCALE = 0.38
_WARP = 0.20


def _warp(rng: Generator, frame: Frame, relative: float, centre_px: _Point) -> Field:
    """A displacement (H, W) in radii, none at the centre, so that this stays inside."""
    noise = smooth_noise(rng, frame, _WARP_SCALE * relative)
    return _WARP * (noise - float(noise[round(centre_px[1]), round(centre_px[0])]))


_ELONGATION_MEDIAN = 0.24
_ELONGATION_SPREAD = 0.7
_LONGEST = 2.6


def _ellipse_coordinates(
    rng: Generator, frame: Frame, radius_px: float, centre_px: _Point
) -> tuple[Field, Field]:
    """Coordinates (H, W) in which the lesion's ellipse is the unit circle."""
    longer = 1.0 + _ELONGATION_MEDIAN * rng.lognormal(0.0, _ELONGATION_SPREAD)
    stretch = math.sqrt(min(longer, _LONGEST))
    angle = within(rng, (0.0, math.pi))
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = frame.grid()
    x, y = (x - centre_px[0]) / radius_px, (y - centre_px[1]) / radius_px
    return (x * cosine + y * sine) / stretch, (y * cosine - x * sine) * stretch


_LOBES = ((2, 0.080), (3, 0.053), (4, 0.040), (5, 0.032))
_FINGER_CHANCE = 0.15
_FINGERS = (9, 26)
_FINGER_WAVES = 4
_FINGER_HEIGHT = 0.05
_ANGLE_STEPS = 1024
_SHORTEST_REACH = 0.3


def _reach(rng: Generator, angle: Field, raggedness: float) -> Field:
    """How far the lesion reaches per direction, around 1: broad lobes, sometimes fine fingers."""
    waves = list(_LOBES)
    if chance(rng, _FINGER_CHANCE):
        orders = rng.integers(*_FINGERS, size=_FINGER_WAVES).tolist()
        waves += [(order, _FINGER_HEIGHT) for order in orders]
    turns = np.arange(_ANGLE_STEPS) * (2.0 * math.pi / _ANGLE_STEPS)
    table = np.ones(_ANGLE_STEPS)
    for order, height in waves:
        phase = within(rng, (0.0, 2.0 * math.pi))
        table += raggedness * height * rng.standard_normal() * np.cos(order * turns + phase)
    table = np.maximum(table, _SHORTEST_REACH)
    steps = ((angle + math.pi) * (_ANGLE_STEPS / (2.0 * math.pi))).astype(np.intp) % _ANGLE_STEPS
    return as_field(table)[steps]


def _one_piece(raw: NDArray[np.bool_], centre_px: _Point) -> NDArray[np.bool_]:
    """The piece that holds the centre, which always belongs to it, with its holes filled."""
    column, row = round(centre_px[0]), round(centre_px[1])
    raw[row, column] = True
    _, labels = cv2.connectedComponents(raw.astype(np.uint8), connectivity=4)
    piece = np.asarray(labels == labels[row, column], dtype=np.uint8)
    contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(piece, contours, -1, color=(1,), thickness=cv2.FILLED)
    return piece.astype(np.bool_)


def _signed_distance(mask: NDArray[np.bool_]) -> Field:
    """Distance in pixels to the contour between the pixels, (H, W), positive inside."""
    inside, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (mask, ~mask)
    )
    # Each transform counts to the centre of the first pixel across, half a pixel too far.
    signed = np.where(mask, inside - 0.5, 0.5 - outside)
    return as_field(np.minimum(signed, math.hypot(*mask.shape)))


_EDGE_SCALE = 0.2
_EDGE_SPREAD = 0.45
_SHARPEST_PX = 0.9
_SOFTEST = 0.05


def _soften(rng: Generator, frame: Frame, inside_px: Field, edge_px: float) -> Field:
    """Coverage (H, W): an edge wider here than there, at one half all along the contour."""
    variation = np.exp(_EDGE_SPREAD * smooth_noise(rng, frame, _EDGE_SCALE))
    width = np.maximum(edge_px * variation, _SHARPEST_PX)
    return ramp(inside_px, -width, width)
