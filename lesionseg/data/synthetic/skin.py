"""Skin: base colour, mottling, relief, follicles, freckles and vessels."""

from __future__ import annotations

import cv2
import numpy as np

from lesionseg.data.synthetic.fields import Field, FieldSampler, as_field, smoothstep
from lesionseg.data.synthetic.lesion import BLOOD, KERATIN, MELANIN, Outline

# Distribution of the skin colour in CIE Lab: mean, covariance and limits; and that of dark skin.
_TONE_MEAN = (73.5, 4.8, 6.0)
_TONE_COVARIANCE = ((72.0, -18.0, -16.0), (-18.0, 42.0, 20.0), (-16.0, 20.0, 44.0))
_TONE_LIMITS = ((50.0, -3.0, -6.0), (93.0, 26.0, 28.0))
_DARK_TONE_LIMITS = ((36.0, 8.0, 10.0), (54.0, 13.0, 18.0))


def draw_skin_tone(s: FieldSampler) -> Field:
    """Return the base colour of the skin, RGB [3] in 0 to 1."""
    if s.chance(0.06):
        lab = s.rng.uniform(*_DARK_TONE_LIMITS)
    else:
        lab = np.clip(s.rng.multivariate_normal(_TONE_MEAN, _TONE_COVARIANCE), *_TONE_LIMITS)
    return as_field(cv2.cvtColor(as_field(lab)[None, None], cv2.COLOR_LAB2RGB)[0, 0])


def draw_skin(s: FieldSampler, outline: Outline) -> Field:
    """Draw the pigments [5, H, W] that modulate the base colour."""
    pigments = np.zeros((5, *s.shape), dtype=np.float32)
    blotchy = 1.8 if s.chance(0.15) else 1.0
    for pigment, low, high in (
        (MELANIN, 0.003, 0.022),
        (BLOOD, 0.005, 0.035),
        (KERATIN, 0.005, 0.028),
    ):
        spots = np.maximum(s.noise(s.uniform(0.010, 0.045), octaves=3, falloff=0.8) + 0.6, 0.0)
        pigments[pigment] = blotchy * (s.uniform(low, high) * spots + 0.016 * s.noise(0.25))
    distance, _ = s.cells(s.uniform(0.011, 0.024), jitter=0.5)
    relief = s.blur(0.3 - distance, 0.0015) * smoothstep(s.noise(0.12), -1.5, 1.0)
    pigments[MELANIN] += s.uniform(0.0, 0.045) * relief
    if s.chance(0.4):  # flushed and yellowed skin around the lesion
        reach_px = s.uniform(0.15, 0.6) * outline.radius_px
        halo = np.exp(np.minimum(outline.inside_px, 0.0) / reach_px)
        pigments[BLOOD] += s.uniform(0.0, 0.10) * halo
        pigments[KERATIN] += s.uniform(0.0, 0.10) * halo
    if s.chance(0.3):  # hair follicles, darker or paler than the skin
        distance, label = s.cells(s.uniform(0.05, 0.11), jitter=0.38)
        dots = smoothstep(distance, s.uniform(0.06, 0.16), 0.0) * s.per_cell(label)
        pigments[MELANIN] += s.uniform(-0.05, 0.10) * dots
    if s.chance(0.35):  # freckles
        rarity = s.uniform(1.2, 2.2)
        freckles = smoothstep(s.noise(s.uniform(0.007, 0.025)), rarity, rarity + 1.6)
        pigments[MELANIN] += s.uniform(0.05, 0.22) * freckles
    if s.chance(0.2):  # vessels: branching lines where a noise field crosses zero
        zero = np.abs(s.noise(s.uniform(0.018, 0.05), octaves=2, falloff=0.35))
        vessels = smoothstep(zero, 0.09, 0.0) * smoothstep(s.noise(0.12), 0.4, 1.6)
        pigments[BLOOD] += s.uniform(0.04, 0.18) * s.blur(vessels, 0.0012)
    return pigments
