"""The contact gel and the light on it: bubbles, the gel's edge, specks of glare."""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._canvas import Canvas
from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    blur,
    chance,
    smooth_noise,
    within,
)

_Points = NDArray[np.float64]

_BUBBLE_CHANCE = 0.22
_GEL_EDGE_CHANCE = 0.07
_GLARE_CHANCE = 0.22


def spread_gel(rng: Generator, frame: Frame, image: Field) -> Field:
    """The image (H, W, 3) seen through contact gel, with what light does on it."""
    if chance(rng, _BUBBLE_CHANCE):
        image = _blow_bubbles(rng, frame, image)
    if chance(rng, _GEL_EDGE_CHANCE):
        image = image + _gel_edge(rng, frame)[..., None]
    if chance(rng, _GLARE_CHANCE):
        image = image + _glare(rng, frame)[..., None]
    return image


_BUBBLES = (1, 10)
_BUBBLE_RADIUS: Range = (0.006, 0.055)
_SMALL_BUBBLES = 1.5
_LONELY_CHANCE = 0.5
_CLUSTER: Range = (0.1, 0.9)
_CLUSTER_SPREAD = 0.06


def _blow_bubbles(rng: Generator, frame: Frame, image: Field) -> Field:
    """Bubbles of many sizes, alone and in one cluster, lit from one side."""
    dark, light, highlight = Canvas(frame), Canvas(frame), Canvas(frame)
    lamp = within(rng, (0.0, 2.0 * math.pi))
    cluster = rng.uniform(*_CLUSTER, 2)
    smallest, largest = _BUBBLE_RADIUS
    for _ in range(int(rng.integers(*_BUBBLES))):
        near = cluster + rng.normal(0.0, _CLUSTER_SPREAD, 2)
        place = rng.random(2) if chance(rng, _LONELY_CHANCE) else near
        centre = place * (frame.width, frame.height)
        radius = smallest * (largest / smallest) ** (rng.random() ** _SMALL_BUBBLES)
        _draw_rims(rng, dark, light, centre, radius * frame.unit)
        _draw_highlights(rng, highlight, centre, radius * frame.unit, lamp)
    return _lit_bubbles(rng, frame, image, (dark, light, highlight))


_RIM_WIDTH = 0.07
_INNER_RIM = 0.90
_INNER_LIGHT: Range = (0.3, 1.0)


def _draw_rims(
    rng: Generator, dark: Canvas, light: Canvas, centre: _Points, radius_px: float
) -> None:
    """A dark circle with a bright one just inside it."""
    x, y = float(centre[0]), float(centre[1])
    dark.circle((x, y), radius_px, _RIM_WIDTH * radius_px)
    inner_px = _INNER_RIM * radius_px
    light.circle((x, y), inner_px, _RIM_WIDTH * radius_px, within(rng, _INNER_LIGHT))


_ARC_RADIUS = 0.68
_ARC_WIDTH = 0.11
_ARC_LENGTH: Range = (0.5, 1.4)
_NEAR_ARC = 0.5
_FAR_ARC = 0.25


def _draw_highlights(
    rng: Generator, canvas: Canvas, centre: _Points, radius_px: float, lamp: float
) -> None:
    """The lamp's reflection: an arc towards the lamp and a fainter one away from it."""
    for angle, size in ((lamp, _NEAR_ARC), (lamp + math.pi, _FAR_ARC)):
        turns = angle + np.linspace(-size, size, 8) * within(rng, _ARC_LENGTH)
        arc = centre + _ARC_RADIUS * radius_px * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        canvas.lines(arc[None], _ARC_WIDTH * radius_px, opacity=2.0 * size)


_BUBBLE_BLUR = 0.002
_RIM_DARK: Range = (0.10, 0.30)
_RIM_LIGHT: Range = (0.10, 0.35)
_HIGHLIGHT: Range = (0.4, 0.9)


def _lit_bubbles(
    rng: Generator, frame: Frame, image: Field, drawn: tuple[Canvas, Canvas, Canvas]
) -> Field:
    """The image with the rims' shade, the rims' light and the reflections drawn."""
    dark, light, highlight = (
        blur(canvas.opacity(), _BUBBLE_BLUR * frame.unit)[..., None] for canvas in drawn
    )
    added = within(rng, _RIM_LIGHT) * light + within(rng, _HIGHLIGHT) * highlight
    return image * (1.0 - within(rng, _RIM_DARK) * dark) + added


_EDGE_RADIUS: Range = (0.45, 0.9)
_EDGE_CENTRE: Range = (0.2, 0.8)
_EDGE_WAVES = ((2, 0.060), (3, 0.040), (5, 0.024), (7, 0.017))
_EDGE_WIDTH = 0.005
_EDGE_BLUR = 0.003
_EDGE_SHIFT = 0.008
_EDGE_LIGHT: Range = (0.06, 0.22)


def _gel_edge(rng: Generator, frame: Frame) -> Field:
    """Light gained (H, W) at the meniscus where the gel ends: a long line, bright beside dark."""
    turns = np.linspace(0.0, 2.0 * math.pi, 120)
    radius_px = np.full_like(turns, within(rng, _EDGE_RADIUS) * frame.unit)
    for order, height in _EDGE_WAVES:
        phase = within(rng, (0.0, 2.0 * math.pi))
        radius_px *= 1.0 + height * rng.standard_normal() * np.sin(order * turns + phase)
    centre = rng.uniform(*_EDGE_CENTRE, 2) * (frame.width, frame.height)
    canvas = Canvas(frame)
    ring = centre + radius_px[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    canvas.lines(ring[None], _EDGE_WIDTH * frame.unit)
    line = blur(canvas.opacity(), _EDGE_BLUR * frame.unit)
    return within(rng, _EDGE_LIGHT) * (
        line - np.roll(line, round(_EDGE_SHIFT * frame.unit), axis=1)
    )


_SPECKS = (2, 41)
_HOME: Range = (0.1, 0.9)
_HOME_SPREAD: Range = (0.02, 0.16)
_SPECK_LENGTH: Range = (0.0005, 0.007)
_SPECK_WIDTH = 0.002
_SPECK_WIDTH_SPREAD = 0.6
_SPECK_LEAN = 0.7
_SPECK_OPACITY: Range = (0.2, 1.0)
_SPECK_BLUR = 0.0015
_SPECK_LIGHT: Range = (0.3, 0.9)
_SHEEN_CHANCE = 0.25
_SHEEN_SCALE = 0.2
_SHEEN: Range = (0.01, 0.05)


def _glare(rng: Generator, frame: Frame) -> Field:
    """Light gained (H, W) where the lamp glints: small specks, sometimes a broad sheen."""
    canvas = Canvas(frame)
    strokes = _glints(rng, frame, int(rng.integers(*_SPECKS)))
    for stroke in strokes:
        width_px = _SPECK_WIDTH * frame.unit * rng.lognormal(0.0, _SPECK_WIDTH_SPREAD)
        canvas.lines(stroke[None], width_px, within(rng, _SPECK_OPACITY))
    light = within(rng, _SPECK_LIGHT) * blur(canvas.opacity(), _SPECK_BLUR * frame.unit)
    if chance(rng, _SHEEN_CHANCE):
        sheen = np.maximum(smooth_noise(rng, frame, _SHEEN_SCALE), 0.0)
        light = light + within(rng, _SHEEN) * sheen
    return light


def _glints(rng: Generator, frame: Frame, count: int) -> _Points:
    """Short strokes (count, 3, 2) around one place, leaning one way."""
    spread = within(rng, _HOME_SPREAD)
    middle = rng.uniform(*_HOME, 2) + rng.normal(0.0, spread, (count, 2))
    middle *= (frame.width, frame.height)
    angle = within(rng, (0.0, math.pi)) + _SPECK_LEAN * rng.standard_normal(count)
    length_px = rng.uniform(*_SPECK_LENGTH, count) * frame.unit
    half = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length_px[:, None]
    # The second half turns off, or every glint would be a straight dash.
    return np.stack([middle - half, middle, middle + half[:, ::-1]], axis=1)
