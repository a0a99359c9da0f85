"""Synthetic dermoscopic images of skin lesions with exact masks.

An image is composed in the order of the real scene: skin, lesion, artefacts, camera. The mask is
the set of pixels where the lesion covers more than one half; artefacts do not change it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.synthetic import artefacts
from lesionseg.data.synthetic.fields import Field, FieldSampler, as_field, blend, smoothstep
from lesionseg.data.synthetic.lesion import (
    BLOOD,
    KERATIN,
    KINDS,
    MELANIN,
    SCAR,
    Outline,
    draw_lesion,
    draw_outline,
    transmittance,
)

IMAGE_FOLDER = "ISIC2018_Task1-2_Training_Input"
MASK_FOLDER = "ISIC2018_Task1_Training_GroundTruth"

# Distribution of the skin colour in CIE Lab: mean, covariance and limits; and that of dark skin.
_TONE_MEAN = (73.5, 4.8, 6.0)
_TONE_COVARIANCE = ((72.0, -18.0, -16.0), (-18.0, 42.0, 20.0), (-16.0, 20.0, 44.0))
_TONE_LIMITS = ((50.0, -3.0, -6.0), (93.0, 26.0, 28.0))
_DARK_TONE_LIMITS = ((36.0, 8.0, 10.0), (54.0, 13.0, 18.0))


@dataclass(frozen=True)
class Sample:
    """A synthetic image and its mask."""

    image: NDArray[np.uint8]  # [H, W, 3], RGB
    mask: NDArray[np.uint8]  # [H, W], 255 inside the lesion and 0 outside; never empty


def write_dataset(
    root: Path,
    n: int,
    *,
    seed: int = 0,
    height: int = 384,
    width: int = 512,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write images and masks (0 and 255) to a new folder, completely or not at all.

    The folder has the layout of the ISIC 2018 segmentation challenge.
    Image i is named ``SYNTH_000000i`` and depends on ``seed`` and i only: a larger set begins with
    the smaller one.

    Args:
        root: the folder; it may exist if it is empty.
        n: number of images, at least 1.
        seed: 0 or more.
        height: in pixels, at least 32.
        width: in pixels, at least 32.
        on_progress: called after each image with the number written.

    Raises:
        ValueError: ``root`` is a file or not empty.
        OSError: a file cannot be written.
    """
    root = root.resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"root must be a new or empty folder, got {root}")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        part = Path(scratch) / root.name
        (part / IMAGE_FOLDER).mkdir(parents=True)
        (part / MASK_FOLDER).mkdir()
        for index in range(n):
            image_seed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
            sample = render(int(image_seed), height, width)
            stem = f"SYNTH_{index:07d}"
            bgr = np.ascontiguousarray(sample.image[..., ::-1])
            _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
            _, png = cv2.imencode(".png", sample.mask)
            (part / IMAGE_FOLDER / f"{stem}.jpg").write_bytes(jpeg.tobytes())
            (part / MASK_FOLDER / f"{stem}_segmentation.png").write_bytes(png.tobytes())
            on_progress(index + 1)
        part.rename(root)


def render(seed: int, height: int = 384, width: int = 512) -> Sample:
    """Render one image. Equal arguments give equal bytes.

    Args:
        seed: 0 or more.
        height: in pixels, at least 32.
        width: in pixels, at least 32.
    """
    # Each layer has its own generator, so that changes of one layer do not affect the others.
    generators = np.random.default_rng(seed).spawn(7)
    samplers = [FieldSampler(rng, height, width) for rng in generators]
    shape, inside, skin, markings, hair, gel, camera = samplers
    kind = shape.choice(list(KINDS.values()), [kind.weight for kind in KINDS.values()])
    raggedness, softness = shape.uniform(*kind.raggedness), shape.uniform(*kind.softness)
    outline = draw_outline(shape, raggedness, softness)
    lesion = outline.coverage * draw_lesion(inside, kind, outline)
    tone = _draw_skin_tone(skin)
    scene = as_field(tone * transmittance(_draw_skin(skin, outline) + lesion))
    # Scar tissue is white relative to the surrounding skin.
    scene = blend(scene, np.minimum(lesion[SCAR], 0.6), np.minimum((0.90, 0.84, 0.84), 1.12 * tone))
    scene = artefacts.add_markings(markings, scene, outline)
    scene = artefacts.add_gel(gel, artefacts.add_hair(hair, scene))
    image = _photograph(camera, scene, outline)
    return Sample(image, mask=np.where(outline.mask, np.uint8(255), np.uint8(0)))


def _draw_skin_tone(s: FieldSampler) -> Field:
    """Return the base colour of the skin, RGB [3] in 0 to 1."""
    if s.chance(0.06):
        lab = s.rng.uniform(*_DARK_TONE_LIMITS)
    else:
        lab = np.clip(s.rng.multivariate_normal(_TONE_MEAN, _TONE_COVARIANCE), *_TONE_LIMITS)
    return as_field(cv2.cvtColor(as_field(lab)[None, None], cv2.COLOR_LAB2RGB)[0, 0])


def _draw_skin(s: FieldSampler, outline: Outline) -> Field:
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
