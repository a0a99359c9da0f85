"""Composition of an image: skin and lesion, artefacts, and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.synthetic import artefacts
from lesionseg.data.synthetic.fields import Field, FieldSampler, as_field, blend, smoothstep
from lesionseg.data.synthetic.lesion import (
    KINDS,
    SCAR,
    Outline,
    draw_lesion,
    draw_outline,
    transmittance,
)
from lesionseg.data.synthetic.skin import draw_skin, draw_skin_tone

MIN_SIDE_PX = 32


@dataclass(frozen=True)
class Sample:
    """A synthetic image and its mask."""

    image: NDArray[np.uint8]  # [H, W, 3], RGB
    mask: NDArray[np.uint8]  # [H, W], 255 inside the lesion and 0 outside; never empty


def render(seed: int, height: int = 384, width: int = 512) -> Sample:
    """Render one image. Equal arguments give equal bytes.

    Args:
        seed: 0 or more.
        height: in pixels, at least 32.
        width: in pixels, at least 32.

    Raises:
        ValueError: an argument is out of range.
    """
    check_arguments(seed, height, width)
    # Each layer has its own generator, so that changes of one layer do not affect the others.
    generators = np.random.default_rng(seed).spawn(7)
    samplers = [FieldSampler(rng, height, width) for rng in generators]
    shape, inside, skin, markings, hair, gel, camera = samplers
    kind = shape.choice(list(KINDS.values()), [kind.weight for kind in KINDS.values()])
    raggedness, softness = shape.uniform(*kind.raggedness), shape.uniform(*kind.softness)
    outline = draw_outline(shape, raggedness, softness)
    lesion = outline.coverage * draw_lesion(inside, kind, outline)
    tone = draw_skin_tone(skin)
    scene = as_field(tone * transmittance(draw_skin(skin, outline) + lesion))
    # Scar tissue is white relative to the surrounding skin.
    scene = blend(scene, np.minimum(lesion[SCAR], 0.6), np.minimum((0.90, 0.84, 0.84), 1.12 * tone))
    scene = artefacts.add_markings(markings, scene, outline)
    scene = artefacts.add_gel(gel, artefacts.add_hair(hair, scene))
    image = _photograph(camera, scene, outline)
    return Sample(image, mask=np.where(outline.mask, np.uint8(255), np.uint8(0)))


def check_arguments(seed: int, height: int, width: int) -> None:
    """Raise ValueError if the seed is negative or a side is too short."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    for name, side in (("height", height), ("width", width)):
        if side < MIN_SIDE_PX:
            raise ValueError(f"{name} must be at least {MIN_SIDE_PX} pixels, got {side}")


def _photograph(s: FieldSampler, scene: Field, outline: Outline) -> NDArray[np.uint8]:
    """Convert a scene [H, W, 3] in about 0 to 1 into a camera image."""
    gains = np.exp(0.02 * s.rng.standard_normal(3) + 0.03 * s.rng.standard_normal())
    if s.chance(0.12):  # overexposed
        gains *= s.uniform(1.05, 1.22)
    scene = scene * _illumination(s)[..., None] * as_field(gains)
    scene = np.maximum((scene - 0.6) * s.uniform(0.9, 1.25) + 0.6, 0.0)
    scene = s.blur(as_field(scene), s.uniform(0.0006, 0.0028))
    if s.chance(0.3):  # sharpened
        scene = scene + s.uniform(0.3, 1.0) * (scene - s.blur(scene, 0.003))
    if s.chance(0.03):
        scene = _add_rim(s, scene, outline)
    grain = 0.5 * s.white_noise(*s.shape, 3) + s.white_noise(*s.shape, 1)
    scene = scene + s.uniform(0.002, 0.012) * grain * (0.4 + 0.6 * scene)
    pixels = np.rint(np.clip(scene, 0.0, 1.0) * 255.0).astype(np.uint8)
    # Colour at half the resolution of brightness, as in JPEG files of cameras.
    luma_chroma = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)
    luma_chroma[..., 1:] = cv2.blur(luma_chroma[..., 1:], (2, 2))
    return np.asarray(cv2.cvtColor(luma_chroma, cv2.COLOR_YCrCb2RGB), dtype=np.uint8)


def _illumination(s: FieldSampler) -> Field:
    """Return the light [H, W] around 1: a gradient, unevenness and, in some images, a vignette."""
    x, y = (axis / side for axis, side in zip(s.grid(s.size_px / 2), s.size_px, strict=True))
    slope_x, slope_y = 0.065 * s.rng.standard_normal(2)
    light = 1.0 + slope_x * x + slope_y * y + s.uniform(0.0, 0.03) * s.noise(0.3)
    if s.chance(0.45):
        radius = np.hypot(x, y) / math.sqrt(0.5)
        light = light - s.uniform(0.03, 0.28) * radius ** s.uniform(2.0, 5.0)
    return as_field(light)


def _add_rim(s: FieldSampler, scene: Field, outline: Outline) -> Field:
    """Add the black circular rim of the dermatoscope, outside the lesion."""
    distance = np.hypot(*s.grid(s.size_px / 2 + 0.02 * s.unit_px * s.rng.standard_normal(2)))
    clear_px = 1.04 * float(distance[outline.mask].max())
    radius_px = max(s.uniform(0.35, 0.50) * math.hypot(*s.shape), clear_px)
    edge_px = max(s.uniform(0.004, 0.03) * s.unit_px, 1.0)
    visible = smoothstep(distance, radius_px + edge_px, radius_px)[..., None]
    return as_field(scene * visible + s.uniform(0.0, 0.05) * (1.0 - visible))
