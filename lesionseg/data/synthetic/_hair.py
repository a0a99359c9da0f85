"""Hairs: curved, tapered, lying over skin and lesion alike, from a stray few to a thicket."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._canvas import Canvas, lay_over, rgb
from lesionseg.data.synthetic._fields import Field, Frame, Range, blur, chance, within

_Points = NDArray[np.float64]


@dataclass(frozen=True)
class HairStyle:
    """One growth of hair.

    Attributes:
        weight: how common it is, relative to the others.
        count: how many hairs, drawn log-uniformly.
        length, width: of a hair, as shares of the frame's shorter side.
        curl: how far a hair turns over its length, radians.
        spread: how far the hairs' directions scatter, radians.
        opacity: of the thickest part.
        colours: (R, G, B) to choose one from.
    """

    weight: float
    count: Range
    length: Range
    width: Range
    curl: Range
    spread: float
    opacity: Range
    colours: tuple[tuple[float, float, float], ...]


_BLACK = (0.10, 0.08, 0.08)
_BROWN = (0.28, 0.17, 0.11)
_CHESTNUT = (0.45, 0.27, 0.15)
_TAN = (0.62, 0.44, 0.28)
_BLOND = (0.80, 0.68, 0.50)
_WHITE = (0.93, 0.90, 0.84)

_BARE_CHANCE = 0.42
STYLES: dict[str, HairStyle] = {
    "stray": HairStyle(
        weight=0.18,
        count=(1, 7),
        length=(0.4, 1.6),
        width=(0.002, 0.0055),
        curl=(0.1, 1.6),
        spread=1.6,
        opacity=(0.45, 0.9),
        colours=(_BLACK, _BROWN, _BROWN, _CHESTNUT),
    ),
    "several": HairStyle(
        weight=0.10,
        count=(8, 26),
        length=(0.35, 1.4),
        width=(0.002, 0.005),
        curl=(0.1, 1.2),
        spread=0.5,
        opacity=(0.45, 0.9),
        colours=(_BLACK, _BROWN, _CHESTNUT),
    ),
    "dense": HairStyle(
        weight=0.05,
        count=(35, 130),
        length=(0.3, 1.1),
        width=(0.002, 0.005),
        curl=(0.1, 1.2),
        spread=0.3,
        opacity=(0.5, 0.9),
        colours=(_BLACK, _BROWN, _CHESTNUT),
    ),
    "vellus": HairStyle(
        weight=0.16,
        count=(10, 70),
        length=(0.08, 0.45),
        width=(0.0012, 0.003),
        curl=(0.1, 1.4),
        spread=0.6,
        opacity=(0.2, 0.55),
        colours=(_BROWN, _CHESTNUT, _TAN, _BLOND, _WHITE),
    ),
    "stubble": HairStyle(
        weight=0.07,
        count=(8, 40),
        length=(0.015, 0.06),
        width=(0.0035, 0.007),
        curl=(0.0, 0.5),
        spread=0.35,
        opacity=(0.5, 0.9),
        colours=(_BLACK, _BROWN),
    ),
}


def lay_hairs(rng: Generator, frame: Frame, image: Field) -> Field:
    """The image (H, W, 3) with a growth of hair over it, or as it was."""
    if chance(rng, _BARE_CHANCE):
        return image
    style = _draw_style(rng)
    fewest, most = style.count
    count = round(math.exp(within(rng, (math.log(fewest), math.log(most)))))
    canvas = Canvas(frame)
    for hair, width, opacity in _grow(rng, frame, style, count):
        canvas.polygon(_tapered(hair, width), opacity)
    colour = rgb(*style.colours[int(rng.integers(len(style.colours)))])
    return _lay(rng, frame, image, canvas.opacity(), colour)


def _draw_style(rng: Generator) -> HairStyle:
    styles = list(STYLES.values())
    weights = np.array([style.weight for style in styles])
    return styles[int(rng.choice(len(styles), p=weights / weights.sum()))]


_OVERHANG = 0.3


def _grow(
    rng: Generator, frame: Frame, style: HairStyle, count: int
) -> list[tuple[_Points, float, float]]:
    """Each hair's middle line (K, 2) and width, in pixels, and its opacity."""
    angles = _headings(rng, style, count)
    length_px = rng.uniform(*style.length, (count, 1, 1)) * frame.unit
    steps = length_px / _STEPS * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    roots = rng.uniform(-_OVERHANG, 1.0 + _OVERHANG, (count, 1, 2)) * (frame.width, frame.height)
    lines = roots + np.cumsum(steps, axis=1)
    widths = rng.uniform(*style.width, count) * frame.unit
    opacities = rng.uniform(*style.opacity, count)
    return list(zip(lines, widths.tolist(), opacities.tolist(), strict=True))


_STEPS = 28
_BEND_MEAN = 0.8
_BEND_SPREAD = 0.6
_WAVE = 0.25


def _headings(rng: Generator, style: HairStyle, count: int) -> _Points:
    """The direction of each hair at each step, (count, K): most hairs bend the same way."""
    along = np.linspace(0.0, 1.0, _STEPS)
    start = within(rng, (0.0, 2.0 * math.pi)) + style.spread * rng.standard_normal((count, 1))
    bend = within(rng, style.curl) * (1 if chance(rng, 0.5) else -1)
    turn = bend * rng.normal(_BEND_MEAN, _BEND_SPREAD, (count, 1))
    wave = _WAVE * rng.standard_normal((count, 1))
    return start + turn * along + wave * np.sin(2.0 * math.pi * along)


_TIP = 0.12
_TIP_BLUNTNESS = 0.6
_FULLEST = 1.3
_ROOT = 0.35
_ROOT_RISE = 6.0


def _tapered(line: _Points, width_px: float) -> _Points:
    """The outline of a hair: full soon after the root, fine at the tip."""
    along = np.linspace(0.0, 1.0, len(line))
    tip = np.clip(_FULLEST * (1.0 - along) ** _TIP_BLUNTNESS, _TIP, 1.0)
    root = np.minimum(_ROOT + _ROOT_RISE * along, 1.0)
    half = 0.5 * width_px * tip * root
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * half[:, None]
    return np.concatenate([line + normal, (line - normal)[::-1]])


_SHADOW_REACH = 0.008
_SHADOW: Range = (0.0, 0.35)
_DEFOCUS: Range = (0.0, 0.0025)


def _lay(rng: Generator, frame: Frame, image: Field, opacity: Field, colour: Field) -> Field:
    """Hairs and the soft shadow they throw where they stand off the skin."""
    opacity = blur(opacity, within(rng, _DEFOCUS) * frame.unit)
    shadow = within(rng, _SHADOW) * blur(opacity, _SHADOW_REACH * frame.unit)
    return lay_over(image * (1.0 - shadow[..., None]), opacity, colour)
