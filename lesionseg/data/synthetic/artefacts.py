"""Artefacts on the skin: ink, rulers, hair, gel bubbles and glare."""

from __future__ import annotations

import math

import numpy as np

from lesionseg.data.synthetic.fields import (
    Field,
    FieldSampler,
    Points,
    as_field,
    blend,
    circle_points,
    smoothstep,
)
from lesionseg.data.synthetic.lesion import Outline

_INK_COLOURS = ((0.33, 0.14, 0.55), (0.22, 0.20, 0.50), (0.38, 0.22, 0.42))
_BLACK, _BROWN, _CHESTNUT = (0.10, 0.08, 0.08), (0.28, 0.17, 0.11), (0.45, 0.27, 0.15)
_DARK_HAIR = (_BLACK, _BROWN, _CHESTNUT)
_FINE_HAIR = (_BROWN, _CHESTNUT, (0.62, 0.44, 0.28), (0.80, 0.68, 0.50), (0.93, 0.90, 0.84))
#: Hair growths: relative frequency, number of hairs, length, width, spread of the directions in
#: radians, opacity, colours.
_HAIR_STYLES = (
    (0.18, (1, 7), (0.4, 1.6), (0.002, 0.0055), 1.6, (0.45, 0.9), _DARK_HAIR),
    (0.10, (8, 26), (0.35, 1.4), (0.002, 0.005), 0.5, (0.45, 0.9), _DARK_HAIR),
    (0.05, (35, 130), (0.3, 1.1), (0.002, 0.005), 0.3, (0.5, 0.9), _DARK_HAIR),
    (0.16, (10, 70), (0.08, 0.45), (0.0012, 0.003), 0.6, (0.2, 0.55), _FINE_HAIR),
    (0.07, (8, 40), (0.015, 0.06), (0.0035, 0.007), 0.35, (0.5, 0.9), (_BLACK, _BROWN)),
)


def add_markings(s: FieldSampler, image: Field, outline: Outline) -> Field:
    """Add pen ink and a ruler, each with a small probability."""
    if s.chance(0.08):
        image = _add_ink(s, image, outline)
    if s.chance(0.20):
        return _add_scale_bar(s, image)
    return _add_tape(s, image) if s.chance(0.07) else image


def _add_ink(s: FieldSampler, image: Field, outline: Outline) -> Field:
    """Add marks of a surgical pen around the lesion: a broken circle or scribbled spots."""
    reach_px = s.uniform(1.25, 1.9) * outline.radius_px + 0.07 * s.unit_px
    angles = s.uniform(0.0, math.tau) + np.linspace(0.0, math.tau, 60)
    ring = outline.center_px + circle_points(angles, reach_px * (1.0 + 0.04 * np.sin(3.0 * angles)))
    if s.chance(0.35):
        ink = s.draw([ring[: int(s.rng.integers(30, 61))]], 1.0, s.uniform(0.008, 0.03))
    else:
        spots = ring[:: int(s.rng.integers(10, 60)), None]
        size_px = s.uniform(0.009, 0.027) * s.unit_px
        scribbles = spots + size_px * s.rng.standard_normal((len(spots), 34, 2))
        ink = s.draw(list(scribbles), 1.0, 0.003)
    opacity = s.uniform(0.35, 0.85) * smoothstep(s.noise(0.006), -1.0, 0.8) * s.blur(ink, 0.002)
    return blend(image, opacity, s.choice(_INK_COLOURS))


def _add_scale_bar(s: FieldSampler, image: Field) -> Field:
    """Add a thin ruler with millimetre ticks."""
    length, minor = s.uniform(0.55, 0.75), s.choice((2, 5))
    number = np.arange(10 * minor + 1)
    x = (number / number[-1] - 0.5) * length
    height = 0.028 * np.where(number % minor == 0, 1.0, 0.45)
    lines = [np.array([(x[0], 0.0), (x[-1], 0.0)])]
    lines += [np.array([(t, 0.0), (t, -h)]) for t, h in zip(x, height, strict=True)]
    angle = math.radians(14.0) * s.rng.standard_normal()
    axes = circle_points(np.array([angle, angle + math.pi / 2.0]), s.unit_px)
    center_px = s.size_px * (0.5, s.uniform(0.80, 0.93))
    opacity = s.draw([line @ axes + center_px for line in lines], 1.0, s.uniform(0.0013, 0.0026))
    return blend(image, s.uniform(0.45, 0.95) * opacity, (0.16, 0.11, 0.11))


def _add_tape(s: FieldSampler, image: Field) -> Field:
    """Add coarse black ticks along the lower or upper edge, on white tape or on the skin."""
    depth, pitch_px = s.uniform(0.04, 0.10) * s.unit_px, s.uniform(0.06, 0.14) * s.unit_px
    ends = np.array([-0.1, 1.1]) * s.width
    edge = s.height - depth * s.rng.uniform(0.8, 1.2, 2)
    x = np.arange(ends[0], ends[1], pitch_px)
    foot = np.interp(x, ends, edge) + 0.12 * depth
    head = foot + depth * np.where(np.arange(len(x)) % 5 == 0, 0.85, 0.55)
    ticks = np.stack([np.stack([x, foot], axis=1), np.stack([x, head], axis=1)], axis=1)
    flip = slice(None, None, s.choice((1, -1)))
    if s.chance(0.5):
        corners = np.stack([ends[[0, 1, 1, 0]], [*edge, 2 * s.height, 2 * s.height]], axis=1)
        image = blend(image, s.draw([corners], 1.0)[flip], (0.93, 0.94, 0.96))
    width = s.uniform(0.05, 0.14) * pitch_px / s.unit_px
    return blend(image, s.draw(list(ticks), 1.0, width)[flip], (0.08, 0.08, 0.09))


def add_hair(s: FieldSampler, image: Field) -> Field:
    """Add hairs of one style with their soft shadow; 42% of the images have none."""
    if s.chance(0.42):
        return image
    _, counts, lengths, widths, spread, opacities, colours = s.choice(
        _HAIR_STYLES, [style[0] for style in _HAIR_STYLES]
    )
    count = round(math.exp(s.uniform(*np.log(counts))))
    hairs = _grow_hairs(s, spread, s.rng.uniform(*lengths, count), s.rng.uniform(*widths, count))
    opacity = s.draw(list(hairs), s.rng.uniform(*opacities, count))
    opacity = s.blur(opacity, s.uniform(0.0, 0.0025))
    shadow = s.uniform(0.0, 0.35) * s.blur(opacity, 0.008)
    return blend(image * (1.0 - shadow[..., None]), opacity, s.choice(colours))


def _grow_hairs(s: FieldSampler, spread: float, length: Points, width: Points) -> Points:
    """Return the outlines [N, K, 2] of curved hairs, thick near the root and thin at the tip."""
    n, along = len(length), np.linspace(0.0, 1.0, 28)
    start = s.uniform(0.0, math.tau) + spread * s.rng.standard_normal((n, 1))
    bend = s.uniform(0.1, 1.3) * s.choice((1, -1)) * s.rng.normal(0.8, 0.6, (n, 1))
    wave = 0.25 * s.rng.standard_normal((n, 1)) * np.sin(math.tau * along)
    angles = start + bend * along + wave
    steps = circle_points(angles, length[:, None] * s.unit_px / len(along))
    lines = s.rng.uniform(-0.3, 1.3, (n, 1, 2)) * s.size_px + np.cumsum(steps, axis=1)
    taper = np.clip(1.3 * (1.0 - along) ** 0.6, 0.12, 1.0) * np.minimum(0.35 + 6.0 * along, 1.0)
    normals = circle_points(angles + math.pi / 2.0, 0.5 * width[:, None] * s.unit_px * taper)
    return np.concatenate([lines + normals, (lines - normals)[:, ::-1]], axis=1)


def add_gel(s: FieldSampler, image: Field) -> Field:
    """Add bubbles in the contact gel and glare, each with a small probability."""
    if s.chance(0.22):
        image = _add_bubbles(s, image)
    return image + _glare(s)[..., None] if s.chance(0.22) else image


def _add_bubbles(s: FieldSampler, image: Field) -> Field:
    """Add bubbles of many sizes, alone and in a cluster: two rims and the lamp's reflections."""
    lamp, cluster = s.uniform(0.0, math.tau), s.rng.uniform(0.1, 0.9, 2)
    dark, light, highlight = s.uniform(0.1, 0.3), s.uniform(0.1, 0.3), s.uniform(0.4, 0.9)
    image = image.copy()
    for _ in range(int(s.rng.integers(1, 10))):
        place = s.rng.random(2) if s.chance(0.5) else cluster + s.rng.normal(0.0, 0.06, 2)
        radius_px = max(0.006 * 9.0 ** (s.rng.random() ** 1.5) * s.unit_px, 1.0)
        center_px = np.clip(place, 0.0, 1.0) * s.size_px
        low, high = np.maximum(center_px - 1.3 * radius_px, 0.0), center_px + 1.3 * radius_px + 1.0
        columns, rows = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        x, y = s.grid(center_px)
        x, y = x[:, columns], y[rows]
        r, angle = np.hypot(x, y) / radius_px, np.arctan2(y, x) - lamp
        reflection = smoothstep(np.cos(angle), 0.75, 1.0) + 0.5 * smoothstep(
            np.cos(angle), -0.9, -1.0
        )
        added = light * _ring(r, 0.9) + highlight * reflection * _ring(r, 0.68)
        shaded = image[rows, columns] * (1.0 - dark * _ring(r, 1.0))[..., None]
        image[rows, columns] = shaded + added[..., None]
    return image


def _ring(r: Field, radius: float) -> Field:
    return as_field(np.exp(-(((r - radius) / 0.06) ** 2)))


def _glare(s: FieldSampler) -> Field:
    """Return the light added by reflections: small bent strokes, sometimes a broad sheen."""
    count, spread = int(s.rng.integers(2, 41)), s.uniform(0.02, 0.16)
    middle = (s.rng.uniform(0.1, 0.9, 2) + s.rng.normal(0.0, spread, (count, 2))) * s.size_px
    angles = s.uniform(0.0, math.pi) + 0.7 * s.rng.standard_normal(count)
    half = circle_points(angles, s.rng.uniform(0.0005, 0.007, count) * s.unit_px)
    strokes = np.stack([middle - half, middle, middle + half[:, ::-1]], axis=1)
    specks = s.draw(
        list(strokes), s.rng.uniform(0.2, 1.0, count), 0.002 * s.rng.lognormal(0.0, 0.6)
    )
    light = s.uniform(0.3, 0.9) * s.blur(specks, 0.0015)
    if s.chance(0.25):
        light = light + s.uniform(0.01, 0.05) * np.maximum(s.noise(0.2), 0.0)
    return light
