"""Rulers in the picture: the scale bar a dermatoscope prints and the tape laid at the edge."""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._canvas import Canvas, lay_over, rgb
from lesionseg.data.synthetic._fields import Field, Frame, Range, chance, within

_Points = NDArray[np.float64]

_SCALE_BAR_CHANCE = 0.20
_TAPE_CHANCE = 0.07


def place_ruler(rng: Generator, frame: Frame, image: Field) -> Field:
    """The image (H, W, 3) with a scale bar, a tape or neither."""
    if chance(rng, _SCALE_BAR_CHANCE):
        return _print_scale_bar(rng, frame, image)
    if chance(rng, _TAPE_CHANCE):
        return _lay_tape(rng, frame, image)
    return image


_BAR_LENGTH: Range = (0.55, 0.75)
_BAR_TILT = math.radians(14)
_BAR_ROW: Range = (0.80, 0.93)
_BAR_LINE: Range = (0.0013, 0.0026)
_BAR_OPACITY: Range = (0.45, 0.95)
_BAR_COLOUR = rgb(0.16, 0.11, 0.11)


def _print_scale_bar(rng: Generator, frame: Frame, image: Field) -> Field:
    """A thin base line with millimetre ticks and the letters MM beneath its start."""
    length = within(rng, _BAR_LENGTH)
    tilt = _BAR_TILT * rng.standard_normal()
    middle = np.array([0.5 * frame.width, within(rng, _BAR_ROW) * frame.height])
    line_px = within(rng, _BAR_LINE) * frame.unit
    canvas = Canvas(frame)
    for paths in (*_bar_and_ticks(rng, length), _letters()):
        shifted = (paths - (length / 2.0, 0.0)) * frame.unit
        canvas.lines(_turned(shifted, tilt) + middle, line_px)
    return lay_over(image, canvas.opacity() * within(rng, _BAR_OPACITY), _BAR_COLOUR)


_MAJOR_TICKS = 10
_MINOR_PER_MAJOR = (5, 10)
_TICK = 0.028
_HALF_TICK = 0.7
_MINOR_TICK = 0.45


def _bar_and_ticks(rng: Generator, length: float) -> tuple[_Points, _Points]:
    """The base line (1, 2, 2) from the origin and the ticks on it (N, 2, 2)."""
    minor = int(rng.choice(_MINOR_PER_MAJOR))
    number = np.arange(_MAJOR_TICKS * minor + 1)
    height = np.where(number * 2 % minor == 0, _HALF_TICK, _MINOR_TICK)
    height = _TICK * np.where(number % minor == 0, 1.0, height)
    x = number * (length / number[-1])
    foot = np.stack([x, np.zeros_like(x)], axis=1)
    head = np.stack([x, -height], axis=1)
    return foot[[0, -1]][None], np.stack([foot, head], axis=1)


_LETTER_M = np.array([[0.0, 1.0], [0.0, 0.0], [0.5, 0.7], [1.0, 0.0], [1.0, 1.0]])
_LETTER_SIZE = (0.022, 0.028)
_LETTER_PITCH = 0.032
_LETTER_DROP = 0.014


def _letters() -> _Points:
    """Two letters M, (2, K, 2)."""
    letter = _LETTER_M * _LETTER_SIZE + np.array([0.0, _LETTER_DROP])
    return np.stack([letter, letter + np.array([_LETTER_PITCH, 0.0])])


def _turned(points: _Points, angle: float) -> _Points:
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: _Points = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


_TAPE_DEPTH: Range = (0.04, 0.10)
_TAPE_PITCH: Range = (0.06, 0.14)
_TAPE_SLOPE = 0.03
_TAPE_TICKS: Range = (0.55, 0.85)
_TAPE_GAP = 0.12
_TAPE_LINE: Range = (0.05, 0.14)
_TAPE_ABOVE_CHANCE = 0.5
_TAPE_WHITE_CHANCE = 0.5
_TAPE_WHITE = rgb(0.93, 0.94, 0.96)
_TAPE_BLACK = rgb(0.08, 0.08, 0.09)


def _lay_tape(rng: Generator, frame: Frame, image: Field) -> Field:
    """Coarse black ticks along the lower or upper edge, on white tape or bare."""
    depth_px, pitch_px = (within(rng, each) * frame.unit for each in (_TAPE_DEPTH, _TAPE_PITCH))
    x = np.arange(-pitch_px, frame.width + pitch_px, pitch_px)
    slope = _TAPE_SLOPE * rng.standard_normal()
    edge = frame.height - depth_px + slope * (x - frame.width / 2.0)
    foot = edge + _TAPE_GAP * depth_px
    head = foot + depth_px * np.where(np.arange(len(x)) % 5 == 0, _TAPE_TICKS[1], _TAPE_TICKS[0])
    ticks, tape = Canvas(frame), Canvas(frame)
    ticks.lines(_columns(x, foot, head), within(rng, _TAPE_LINE) * pitch_px)
    tape.polygon(_strip(x[[0, -1]], edge[[0, -1]], frame))
    flip = slice(None, None, -1 if chance(rng, _TAPE_ABOVE_CHANCE) else 1)
    if chance(rng, _TAPE_WHITE_CHANCE):
        image = lay_over(image, tape.opacity()[flip], _TAPE_WHITE)
    return lay_over(image, ticks.opacity()[flip], _TAPE_BLACK)


def _columns(x: _Points, top: _Points, bottom: _Points) -> _Points:
    """Vertical strokes (N, 2, 2) at x (N,) between top and bottom (N,)."""
    return np.stack([np.stack([x, top], axis=1), np.stack([x, bottom], axis=1)], axis=1)


def _strip(x: _Points, edge: _Points, frame: Frame) -> _Points:
    """The area (4, 2) below an edge given by its two ends."""
    bottom = np.full(2, 2.0 * frame.height)
    return np.concatenate([np.stack([x, edge], axis=1), np.stack([x[::-1], bottom], axis=1)])
