"""One picture: the layers in the order light meets them."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._camera import photograph
from lesionseg.data.synthetic._canvas import lay_over, rgb
from lesionseg.data.synthetic._fields import Field, Frame, within
from lesionseg.data.synthetic._gel import spread_gel
from lesionseg.data.synthetic._hair import lay_hairs
from lesionseg.data.synthetic._kinds import draw_kind
from lesionseg.data.synthetic._lesion import Lesion, fill_outline
from lesionseg.data.synthetic._markings import place_markings
from lesionseg.data.synthetic._outline import draw_outline
from lesionseg.data.synthetic._skin import skin_pigments, skin_tone
from lesionseg.data.synthetic._structures import add_structures

SMALLEST_SIDE = 32
_LAYERS = 7


@dataclass(frozen=True)
class Sample:
    """A synthetic picture and its mask.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8, 255 inside the lesion and 0 outside; never all 0.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def render(seed: int, height: int = 384, width: int = 512) -> Sample:
    """Draw one picture of a skin lesion.

    The same arguments always give the same bytes; the sizes of two pictures aside, nothing
    relates the picture of one seed to that of another.

    Args:
        seed: any whole number from 0.
        height: rows of the picture, at least 32.
        width: columns of the picture, at least 32.

    Raises:
        ValueError: The seed is negative or a side is shorter than 32 pixels.
    """
    check_drawable(seed, height, width)
    frame = Frame(height, width)
    # A stream of its own per layer: what one layer draws never shifts the others.
    streams = iter(np.random.default_rng(seed).spawn(_LAYERS))
    lesion = _draw_lesion(next(streams), next(streams), frame)
    scene = _compose(next(streams), frame, lesion)
    scene = place_markings(next(streams), frame, scene, lesion.outline)
    scene = lay_hairs(next(streams), frame, scene)
    scene = spread_gel(next(streams), frame, scene)
    image = photograph(next(streams), frame, scene, lesion.outline)
    return Sample(image, mask=np.where(lesion.outline.mask, np.uint8(255), np.uint8(0)))


def check_drawable(seed: int, height: int, width: int) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: The seed is negative or a side is shorter than 32 pixels.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}: pass a non-negative whole number")
    for name, side in (("height", height), ("width", width)):
        if side < SMALLEST_SIDE:
            raise ValueError(
                f"{name} must be at least {SMALLEST_SIDE} pixels, got {side}: "
                f"pass {name}={SMALLEST_SIDE} or more"
            )


def _draw_lesion(of_outline: Generator, of_inside: Generator, frame: Frame) -> Lesion:
    kind = draw_kind(of_outline)
    raggedness, softness = within(of_outline, kind.raggedness), within(of_outline, kind.softness)
    outline = draw_outline(of_outline, frame, raggedness, softness)
    lesion = fill_outline(of_inside, frame, kind, outline)
    add_structures(of_inside, frame, kind, lesion)
    return lesion


_SCAR_WHITE = rgb(0.90, 0.84, 0.84)
_SCAR_OVER_SKIN = 1.12


def _compose(rng: Generator, frame: Frame, lesion: Lesion) -> Field:
    """Skin with the lesion in it, (H, W, 3) in about 0..1."""
    tone = skin_tone(rng)
    pigments = skin_pigments(rng, frame, lesion.outline)
    pigments.add(lesion.pigments, lesion.outline.coverage)
    # Scar tissue looks white against its skin: on darker skin it is not white itself.
    white = np.minimum(_SCAR_WHITE, _SCAR_OVER_SKIN * tone)
    return lay_over(tone * pigments.transmitted(), lesion.outline.coverage * lesion.scar, white)
