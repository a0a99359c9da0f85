"""The lesion's inside: how much of which pigment lies where."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    fractal_noise,
    ramp,
    smooth_noise,
    within,
)
from lesionseg.data.synthetic._kinds import Kind
from lesionseg.data.synthetic._outline import Outline
from lesionseg.data.synthetic._pigments import Pigments


@dataclass
class Lesion:
    """A lesion as if it filled the frame; its outline says what of it is there.

    Attributes:
        outline: where the lesion lies.
        pigments: what it absorbs.
        scar: (H, W) float32 in 0..1, how far white tissue hides what lies beneath.
    """

    outline: Outline
    pigments: Pigments
    scar: Field

    def whiten(self, amount: Field) -> None:
        """Let white tissue hide at least `amount` (H, W) of what lies beneath."""
        np.maximum(self.scar, amount, out=self.scar)


_BLOOD_PATCH: Range = (-0.8, 1.8)
_BLOOD_GROUND = 0.35
_TINT: Range = (0.4, 1.2)
_TINT_OF_DEEP = 0.7
_TINT_OF_KERATIN = 0.5


def fill_outline(rng: Generator, frame: Frame, kind: Kind, outline: Outline) -> Lesion:
    """Fill an outline with the pigments of a kind of lesion, yet without structures."""
    front = _front(rng, frame, outline)
    spread = front * np.exp(_unevenness(rng, frame, kind, outline))
    # Each pigment has patches of its own: that is what varies the hue within one lesion.
    tint = within(rng, _TINT) * patches(rng, frame, outline)
    flush = _BLOOD_GROUND + ramp(patches(rng, frame, outline), *_BLOOD_PATCH)
    pigments = Pigments(
        melanin=within(rng, kind.melanin) * spread,
        blood=within(rng, kind.blood) * front * flush,
        deep=within(rng, kind.deep) * spread * np.exp(_TINT_OF_DEEP * tint),
        keratin=within(rng, kind.keratin) * front * np.exp(_TINT_OF_KERATIN * tint),
    )
    return Lesion(outline, pigments, scar=np.zeros(frame.shape, dtype=np.float32))


_PATCH_SCALE: Range = (0.20, 0.50)
_FINEST_PATCH = 0.01


def patches(rng: Generator, frame: Frame, outline: Outline) -> Field:
    """Cloudy noise (H, W) on the scale of the lesion, unit variance."""
    scale = within(rng, _PATCH_SCALE) * outline.radius_px / frame.unit
    octaves = max(math.ceil(math.log2(scale / _FINEST_PATCH)), 1)
    return fractal_noise(rng, frame, scale, octaves, fall=0.62)


_GRAIN_SCALES = (0.004, 0.011)
_GRAIN: Range = (0.02, 0.13)
_USUAL_DEPTH = 0.35


def _unevenness(rng: Generator, frame: Frame, kind: Kind, outline: Outline) -> Field:
    """The logarithm of how much more melanin lies here than elsewhere."""
    uneven = within(rng, kind.patches) * patches(rng, frame, outline)
    uneven += within(rng, kind.gradient) * (outline.depth() - _USUAL_DEPTH)
    for scale in _GRAIN_SCALES:
        uneven += within(rng, _GRAIN) * smooth_noise(rng, frame, scale)
    return uneven


# A lesion fades out towards its contour: the pigment builds up from a faint rim inwards.
_RIM: Range = (0.12, 0.9)
_RIM_WIDTH: Range = (0.15, 0.5)
_FRAY_SCALE = 0.07
_FRAY = 0.06


def _front(rng: Generator, frame: Frame, outline: Outline) -> Field:
    """How far the pigment has built up, (H, W) from the rim's share to 1, its front frayed."""
    scale = _FRAY_SCALE * outline.radius_px / frame.unit
    fray = _FRAY * fractal_noise(rng, frame, scale, octaves=3, fall=0.8)
    rim = within(rng, _RIM)
    return rim + (1.0 - rim) * ramp(outline.depth() + fray, 0.0, within(rng, _RIM_WIDTH))
