"""What people put next to a lesion: coloured stickers, pen ink and rulers."""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._canvas import Canvas, lay_over, rgb
from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    blur,
    chance,
    ramp,
    smooth_noise,
    within,
)
from lesionseg.data.synthetic._outline import Outline
from lesionseg.data.synthetic._rulers import place_ruler

_Points = NDArray[np.float64]

_STICKER_CHANCE = 0.08
_INK_CHANCE = 0.08


def place_markings(rng: Generator, frame: Frame, image: Field, outline: Outline) -> Field:
    """The image (H, W, 3) with the markings a photographer may have added."""
    if chance(rng, _INK_CHANCE):
        image = _scribble_ink(rng, frame, image, outline)
    if chance(rng, _STICKER_CHANCE):
        image = _stick(rng, frame, image, outline)
    return place_ruler(rng, frame, image)


_STICKER_RADIUS: Range = (0.22, 0.42)
_STICKER_SHOWING: Range = (0.10, 0.28)
_STICKER_ROW: Range = (0.1, 0.9)
_STICKER_WEAVE: Range = (0.01, 0.06)
_STICKER_GRAIN = 0.003
_STICKER_EDGE_PX = 0.8
_STICKER_SHADOW = 0.15
_STICKER_SHADOW_REACH = 0.02
_STICKER_HIDES = 0.02
_STICKER_COLOURS = (
    rgb(0.88, 0.86, 0.06),
    rgb(0.93, 0.55, 0.10),
    rgb(0.13, 0.60, 0.20),
    rgb(0.45, 0.66, 0.70),
    rgb(0.10, 0.35, 0.70),
)


def _stick(rng: Generator, frame: Frame, image: Field, outline: Outline) -> Field:
    """A round coloured sticker reaching in from a side, unless it would hide the lesion."""
    radius_px = within(rng, _STICKER_RADIUS) * frame.unit
    distance = _distance_to_sticker(rng, frame, radius_px, outline)
    opacity = ramp(distance, _STICKER_EDGE_PX, -_STICKER_EDGE_PX)
    if float(opacity[outline.mask].sum()) > _STICKER_HIDES * outline.mask.sum():
        return image
    colour = _STICKER_COLOURS[int(rng.integers(len(_STICKER_COLOURS)))]
    weave = 1.0 + within(rng, _STICKER_WEAVE) * smooth_noise(rng, frame, _STICKER_GRAIN)
    shadow = _STICKER_SHADOW * ramp(distance, _STICKER_SHADOW_REACH * frame.unit, 0.0)
    return lay_over(image * (1.0 - shadow[..., None]), opacity, colour * weave[..., None])


def _distance_to_sticker(rng: Generator, frame: Frame, radius_px: float, outline: Outline) -> Field:
    """Distance (H, W) in pixels to the edge of a disc on the side the lesion leaves free."""
    showing_px = within(rng, _STICKER_SHOWING) * frame.unit
    beyond_px = radius_px - showing_px
    on_the_right = outline.centre_px[0] < frame.width / 2.0
    x, y = frame.grid()
    x = x - (frame.width + beyond_px if on_the_right else -beyond_px)
    y = y - within(rng, _STICKER_ROW) * frame.height
    return np.hypot(x, y) - radius_px


_INK_COLOURS = (rgb(0.33, 0.14, 0.55), rgb(0.22, 0.20, 0.50), rgb(0.38, 0.22, 0.42))
_INK_CIRCLE_CHANCE = 0.35
_INK_REACH: Range = (1.25, 1.9)
_INK_CLEARANCE = 0.07
_INK_OPACITY: Range = (0.35, 0.85)
_INK_BLUR = 0.002
_INK_GRAIN = 0.006
_INK_COVER: Range = (-1.0, 0.8)


def _scribble_ink(rng: Generator, frame: Frame, image: Field, outline: Outline) -> Field:
    """Marks of a surgical pen around the lesion: scribbled spots or a broken circle."""
    canvas = Canvas(frame)
    reach_px = within(rng, _INK_REACH) * outline.radius_px + _INK_CLEARANCE * frame.unit
    draw = _draw_ink_circle if chance(rng, _INK_CIRCLE_CHANCE) else _draw_ink_spots
    draw(rng, frame, canvas, np.array(outline.centre_px), reach_px)
    covered = ramp(smooth_noise(rng, frame, _INK_GRAIN), *_INK_COVER)
    opacity = within(rng, _INK_OPACITY) * covered * blur(canvas.opacity(), _INK_BLUR * frame.unit)
    return lay_over(image, opacity, _INK_COLOURS[int(rng.integers(len(_INK_COLOURS)))])


_SPOTS = (1, 7)
_SPOT_SIZE: Range = (0.009, 0.027)
_SPOT_SCATTER = 0.2
_STROKES = 34
_STROKE_WIDTH = 0.003


def _draw_ink_spots(
    rng: Generator, frame: Frame, canvas: Canvas, centre: _Points, reach_px: float
) -> None:
    count = int(rng.integers(*_SPOTS))
    size_px = within(rng, _SPOT_SIZE) * frame.unit
    turns = within(rng, (0.0, 2.0 * math.pi)) + 2.0 * math.pi * np.arange(count) / count
    turns += _SPOT_SCATTER * rng.standard_normal(count)
    spots = centre + reach_px * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    strokes = spots[:, None, :] + size_px * rng.standard_normal((count, _STROKES, 2))
    canvas.lines(strokes, _STROKE_WIDTH * frame.unit)


_RING_POINTS = 60
_RING_SHOWN = (30, 61)
_RING_WOBBLE = 0.04
_RING_WIDTH: Range = (0.008, 0.03)


def _draw_ink_circle(
    rng: Generator, frame: Frame, canvas: Canvas, centre: _Points, reach_px: float
) -> None:
    turns = np.linspace(0.0, 2.0 * math.pi, _RING_POINTS) + within(rng, (0.0, 2.0 * math.pi))
    reach = reach_px * (1.0 + _RING_WOBBLE * np.sin(3.0 * turns))
    ring = centre + reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    shown = int(rng.integers(*_RING_SHOWN))
    canvas.lines(ring[None, :shown], within(rng, _RING_WIDTH) * frame.unit)
