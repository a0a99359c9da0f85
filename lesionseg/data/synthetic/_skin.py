"""The skin around the lesion: its tone and the small structures that keep it from being flat."""

import math

import cv2
import numpy as np
from numpy.random import Generator

from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    as_field,
    blur,
    brushed_noise,
    cells,
    chance,
    fractal_noise,
    per_cell,
    ramp,
    smooth_noise,
    within,
)
from lesionseg.data.synthetic._outline import Outline
from lesionseg.data.synthetic._pigments import Pigments

# Tone in CIE Lab, as photographs show it: lightness, redness, yellowness.
_TONE_MEAN = (73.5, 4.8, 6.0)
_TONE_COVARIANCE = ((72.0, -18.0, -16.0), (-18.0, 42.0, 20.0), (-16.0, 20.0, 44.0))
_TONE_LOW = (50.0, -3.0, -6.0)
_TONE_HIGH = (93.0, 26.0, 28.0)
_DARK_TONE_CHANCE = 0.06
_DARK_TONE: tuple[Range, Range, Range] = ((36.0, 54.0), (8.0, 13.0), (10.0, 18.0))


def skin_tone(rng: Generator) -> Field:
    """The skin's base colour, (3,) float32 RGB in 0..1."""
    if chance(rng, _DARK_TONE_CHANCE):
        lab = np.array([within(rng, limits) for limits in _DARK_TONE])
    else:
        lab = np.clip(rng.multivariate_normal(_TONE_MEAN, _TONE_COVARIANCE), _TONE_LOW, _TONE_HIGH)
    rgb = cv2.cvtColor(as_field(lab)[None, None, :], cv2.COLOR_LAB2RGB)
    return as_field(rgb[0, 0])


def skin_pigments(rng: Generator, frame: Frame, outline: Outline) -> Pigments:
    """Everything that modulates the tone: mottling, lines, follicles, freckles and vessels."""
    skin = Pigments.none(frame)
    _mottle(rng, frame, skin)
    _engrave_lines(rng, frame, skin)
    if chance(rng, _HALO_CHANCE):
        _flush_around(rng, skin, outline)
    if chance(rng, _FOLLICLE_CHANCE):
        _add_follicles(rng, frame, skin)
    if chance(rng, _FRECKLE_CHANCE):
        _add_freckles(rng, frame, skin)
    if chance(rng, _VESSEL_CHANCE):
        _add_vessels(rng, frame, skin)
    return skin


_MOTTLE_MELANIN: Range = (0.003, 0.022)
_MOTTLE_BLOOD: Range = (0.005, 0.035)
_MOTTLE_KERATIN: Range = (0.005, 0.028)
_BLOTCHY_CHANCE = 0.15
_BLOTCHY_FACTOR = 1.8


def _mottle(rng: Generator, frame: Frame, skin: Pigments) -> None:
    factor = _BLOTCHY_FACTOR if chance(rng, _BLOTCHY_CHANCE) else 1.0
    skin.melanin += factor * _clouds(rng, frame, within(rng, _MOTTLE_MELANIN))
    skin.blood += factor * _clouds(rng, frame, within(rng, _MOTTLE_BLOOD))
    skin.keratin += factor * _clouds(rng, frame, within(rng, _MOTTLE_KERATIN))


_CLOUD_SCALE: Range = (0.010, 0.045)
_CLOUD_GROUND = 0.6
_UNDERTONE_SCALE = 0.25
_UNDERTONE_HEIGHT = 0.016


def _clouds(rng: Generator, frame: Frame, height: float) -> Field:
    """Fine speckle of the given height on a slow undertone."""
    speckle = fractal_noise(rng, frame, within(rng, _CLOUD_SCALE), octaves=3, fall=0.8)
    # Pigment gathers in spots on an even ground; it is not missing in spots.
    spots = np.maximum(speckle + _CLOUD_GROUND, 0.0)
    return as_field(height * spots + _UNDERTONE_HEIGHT * smooth_noise(rng, frame, _UNDERTONE_SCALE))


_RELIEF_SPACING: Range = (0.011, 0.024)
_RELIEF_DEPTH: Range = (0.0, 0.035)
_RELIEF_SHAKE = 0.5
_RELIEF_LEVEL = 0.3
_RELIEF_BLUR = 0.0015
_RELIEF_PATCH_SCALE = 0.12
_RELIEF_PATCH: Range = (-1.5, 1.0)


def _engrave_lines(rng: Generator, frame: Frame, skin: Pigments) -> None:
    """The skin's relief, deeper here than there: small polygons and fine brushed lines."""
    distance, _ = cells(rng, frame, within(rng, _RELIEF_SPACING), _RELIEF_SHAKE)
    relief = within(rng, _RELIEF_DEPTH) * (_RELIEF_LEVEL - distance) + _lines(rng, frame)
    here = ramp(smooth_noise(rng, frame, _RELIEF_PATCH_SCALE), *_RELIEF_PATCH)
    skin.melanin += here * blur(relief, _RELIEF_BLUR * frame.unit)


_LINE_LENGTH: Range = (0.012, 0.035)
_LINE_WIDTH: Range = (0.0012, 0.003)
_LINE_DEPTH: Range = (0.0, 0.014)
_SECOND_DEPTH: Range = (0.0, 0.8)
_CROSSING: Range = (math.radians(50), math.radians(90))


def _lines(rng: Generator, frame: Frame) -> Field:
    """Two crossing families of fine lines, the second fainter."""
    angle, length, width = (
        within(rng, limits) for limits in ((0.0, math.pi), _LINE_LENGTH, _LINE_WIDTH)
    )
    first = brushed_noise(rng, frame, length, width, angle)
    second = brushed_noise(rng, frame, length, width, angle + within(rng, _CROSSING))
    return within(rng, _LINE_DEPTH) * (first + within(rng, _SECOND_DEPTH) * second)


_HALO_CHANCE = 0.4
_HALO_REACH: Range = (0.15, 0.6)
_HALO_BLOOD: Range = (0.0, 0.10)
_HALO_KERATIN: Range = (0.0, 0.10)


def _flush_around(rng: Generator, skin: Pigments, outline: Outline) -> None:
    """The skin at a lesion, flushed and yellowed, less so further out."""
    reach_px = within(rng, _HALO_REACH) * outline.radius_px
    halo = np.exp(np.minimum(outline.inside_px, 0.0) / reach_px)
    skin.blood += within(rng, _HALO_BLOOD) * halo
    skin.keratin += within(rng, _HALO_KERATIN) * halo


_FOLLICLE_CHANCE = 0.30
_FOLLICLE_SPACING: Range = (0.05, 0.11)
_FOLLICLE_SHAKE = 0.38
_FOLLICLE_SIZE: Range = (0.06, 0.16)
_FOLLICLE_DEPTH: Range = (-0.05, 0.10)


def _add_follicles(rng: Generator, frame: Frame, skin: Pigments) -> None:
    """Evenly strewn soft dots: the openings of hair follicles, darker or paler than the skin."""
    distance, cell = cells(rng, frame, within(rng, _FOLLICLE_SPACING), _FOLLICLE_SHAKE)
    dots = ramp(distance, within(rng, _FOLLICLE_SIZE), 0.0) * per_cell(rng, cell)
    skin.melanin += within(rng, _FOLLICLE_DEPTH) * dots


_FRECKLE_CHANCE = 0.35
_FRECKLE_SCALE: Range = (0.007, 0.025)
_FRECKLE_RARITY: Range = (1.2, 2.2)
_FRECKLE_SLOPE = 1.6
_FRECKLE_DEPTH: Range = (0.05, 0.22)


def _add_freckles(rng: Generator, frame: Frame, skin: Pigments) -> None:
    """Small soft brown spots where a noise field peaks."""
    noise = smooth_noise(rng, frame, within(rng, _FRECKLE_SCALE))
    rarity = within(rng, _FRECKLE_RARITY)
    skin.melanin += within(rng, _FRECKLE_DEPTH) * ramp(noise, rarity, rarity + _FRECKLE_SLOPE)


_VESSEL_CHANCE = 0.20
_VESSEL_SCALE: Range = (0.018, 0.05)
_VESSEL_WIDTH: Range = (0.05, 0.12)
_VESSEL_DEPTH: Range = (0.04, 0.18)
_VESSEL_PATCH_SCALE = 0.12
_VESSEL_PATCH: Range = (0.4, 1.6)
_VESSEL_BLUR = 0.0012


def _add_vessels(rng: Generator, frame: Frame, skin: Pigments) -> None:
    """Fine branching red lines: where a noise field crosses zero, here and there."""
    noise = fractal_noise(rng, frame, within(rng, _VESSEL_SCALE), octaves=2, fall=0.35)
    lines = ramp(np.abs(noise), within(rng, _VESSEL_WIDTH), 0.0)
    here = ramp(smooth_noise(rng, frame, _VESSEL_PATCH_SCALE), *_VESSEL_PATCH)
    skin.blood += within(rng, _VESSEL_DEPTH) * blur(lines * here, _VESSEL_BLUR * frame.unit)
