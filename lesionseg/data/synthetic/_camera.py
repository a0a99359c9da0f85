"""The dermatoscope and its camera: light, vignette, colour cast, tone, softness and noise."""

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    as_field,
    blur,
    chance,
    ramp,
    smooth_noise,
    white_noise,
    within,
)
from lesionseg.data.synthetic._outline import Outline


def photograph(rng: Generator, frame: Frame, scene: Field, outline: Outline) -> NDArray[np.uint8]:
    """Turn a scene (H, W, 3) in about 0..1 into the picture a camera delivers, as uint8."""
    scene = as_field(scene * _light(rng, frame)[..., None] * _cast(rng))
    scene = _develop(rng, scene)
    scene = _focus(rng, frame, scene)
    if chance(rng, _FIELD_STOP_CHANCE):
        scene = _stop_field(rng, frame, scene, outline)
    scene = _add_sensor_noise(rng, frame, scene)
    return _soften_chroma(np.rint(np.clip(scene, 0.0, 1.0) * 255.0).astype(np.uint8))


_SLOPE = 0.065
_UNEVENNESS: Range = (0.0, 0.03)
_UNEVENNESS_SCALE = 0.3
_VIGNETTE_CHANCE = 0.45
_VIGNETTE: Range = (0.03, 0.28)
_VIGNETTE_POWER: Range = (2.0, 5.0)


def _light(rng: Generator, frame: Frame) -> Field:
    """Illumination (H, W) around 1: a slope across the field, unevenness, darker corners."""
    x, y = frame.grid()
    x, y = x / frame.width - 0.5, y / frame.height - 0.5
    slope_x, slope_y = (_SLOPE * rng.standard_normal() for _ in range(2))
    uneven = within(rng, _UNEVENNESS) * smooth_noise(rng, frame, _UNEVENNESS_SCALE)
    light = 1.0 + slope_x * x + slope_y * y + uneven
    if chance(rng, _VIGNETTE_CHANCE):
        towards_corner = np.hypot(x, y) / math.sqrt(0.5)
        light = light - within(rng, _VIGNETTE) * towards_corner ** within(rng, _VIGNETTE_POWER)
    return light


_CAST = 0.02


def _cast(rng: Generator) -> Field:
    """Gain per channel, (3,)."""
    return as_field(np.exp(_CAST * rng.standard_normal(3)))


_EXPOSURE = 0.03
_OVEREXPOSED_CHANCE = 0.12
_OVEREXPOSURE: Range = (1.05, 1.22)
_CONTRAST: Range = (0.9, 1.25)
_CONTRAST_PIVOT = 0.6


def _develop(rng: Generator, scene: Field) -> Field:
    """Exposure and contrast; some cameras blow the highlights out."""
    gain = math.exp(_EXPOSURE * rng.standard_normal())
    if chance(rng, _OVEREXPOSED_CHANCE):
        gain *= within(rng, _OVEREXPOSURE)
    contrast = within(rng, _CONTRAST)
    developed = (scene * gain - _CONTRAST_PIVOT) * contrast + _CONTRAST_PIVOT
    return as_field(np.maximum(developed, 0.0))


_BLUR: Range = (0.0006, 0.0028)
_SHARPENING_CHANCE = 0.3
_SHARPENING: Range = (0.3, 1.0)
_SHARPENING_RADIUS = 0.003


def _focus(rng: Generator, frame: Frame, scene: Field) -> Field:
    """Optical blur, and the sharpening some cameras answer it with."""
    soft = blur(scene, within(rng, _BLUR) * frame.unit)
    if not chance(rng, _SHARPENING_CHANCE):
        return soft
    detail = soft - blur(soft, _SHARPENING_RADIUS * frame.unit)
    return soft + within(rng, _SHARPENING) * detail


_FIELD_STOP_CHANCE = 0.03
_FIELD_RADIUS: Range = (0.35, 0.50)
_FIELD_WANDER = 0.02
_FIELD_CLEARANCE = 1.04
_FIELD_EDGE: Range = (0.004, 0.03)
_FIELD_BLACK: Range = (0.0, 0.05)


def _stop_field(rng: Generator, frame: Frame, scene: Field, outline: Outline) -> Field:
    """The dermatoscope's black circular rim, wide enough to leave the whole lesion in view."""
    x, y = frame.grid()
    wander_x, wander_y = (_FIELD_WANDER * frame.unit * rng.standard_normal() for _ in range(2))
    distance = np.hypot(x - frame.width / 2.0 - wander_x, y - frame.height / 2.0 - wander_y)
    needed = _FIELD_CLEARANCE * float(distance[outline.mask].max())
    radius = max(within(rng, _FIELD_RADIUS) * math.hypot(*frame.shape), needed)
    edge = max(within(rng, _FIELD_EDGE) * frame.unit, 1.0)
    lit = ramp(distance, radius + edge, radius)[..., None]
    return scene * lit + within(rng, _FIELD_BLACK) * (1.0 - lit)


_NOISE: Range = (0.002, 0.012)
_NOISE_COLOUR = 0.5
_NOISE_IN_BLACK = 0.4


def _add_sensor_noise(rng: Generator, frame: Frame, scene: Field) -> Field:
    """Mostly grey grain, less of it in the shadows."""
    grain = _NOISE_COLOUR * white_noise(rng, (*frame.shape, 3))
    grain += white_noise(rng, (*frame.shape, 1))
    grain *= _NOISE_IN_BLACK + (1.0 - _NOISE_IN_BLACK) * scene
    return scene + within(rng, _NOISE) * grain


def _soften_chroma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour at half the resolution of brightness, as JPEG cameras store it."""
    converted = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)
    converted[..., 1:] = cv2.blur(converted[..., 1:], (2, 2))
    return np.asarray(cv2.cvtColor(converted, cv2.COLOR_YCrCb2RGB), dtype=np.uint8)
