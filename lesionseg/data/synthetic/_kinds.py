"""The kinds of lesion: a table row each, with the ranges a lesion of that kind is drawn from."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from lesionseg.data.synthetic._fields import Range


@dataclass(frozen=True)
class Kind:
    """Ranges of one kind of lesion; amounts of pigment are optical densities (see `Pigments`).

    Attributes:
        weight: how common the kind is, relative to the others.
        melanin, blood, deep, keratin: mean amounts of pigment.
        patches: how unevenly the melanin is spread (log units).
        gradient: above 0 a darker centre, below 0 a darker periphery.
        raggedness, softness: of the outline (see `draw_outline`).
        network, globules: strength of the two pigment patterns.
        blotch, veil, regression, cysts, fissures: chance of each structure.
    """

    weight: float
    melanin: Range
    blood: Range
    deep: Range
    patches: Range
    gradient: Range
    raggedness: Range
    softness: Range
    network: Range
    globules: Range
    keratin: Range = (0.03, 0.28)
    blotch: float = 0.0
    veil: float = 0.0
    regression: float = 0.0
    cysts: float = 0.0
    fissures: float = 0.0


KINDS: dict[str, Kind] = {
    "reticular naevus": Kind(
        weight=0.26,
        melanin=(0.08, 0.65),
        blood=(0.0, 0.08),
        deep=(0.0, 0.08),
        patches=(0.15, 0.52),
        gradient=(-0.3, 1.8),
        raggedness=(0.25, 0.8),
        softness=(0.08, 0.32),
        network=(0.25, 0.85),
        globules=(0.0, 0.15),
        blotch=0.25,
        veil=0.05,
        regression=0.05,
    ),
    "globular naevus": Kind(
        weight=0.15,
        melanin=(0.07, 0.50),
        blood=(0.0, 0.14),
        deep=(0.0, 0.16),
        patches=(0.15, 0.48),
        gradient=(-0.5, 1.2),
        raggedness=(0.2, 0.65),
        softness=(0.05, 0.25),
        network=(0.0, 0.35),
        globules=(0.2, 0.7),
        blotch=0.1,
        cysts=0.1,
    ),
    "homogeneous naevus": Kind(
        weight=0.17,
        melanin=(0.06, 0.50),
        blood=(0.0, 0.16),
        deep=(0.0, 0.16),
        patches=(0.08, 0.35),
        gradient=(-0.4, 1.8),
        raggedness=(0.12, 0.5),
        softness=(0.08, 0.38),
        network=(0.0, 0.15),
        globules=(0.0, 0.15),
        blotch=0.15,
    ),
    "many-coloured": Kind(
        weight=0.19,
        melanin=(0.16, 0.95),
        blood=(0.02, 0.22),
        deep=(0.0, 0.16),
        patches=(0.30, 0.75),
        gradient=(-0.4, 1.2),
        raggedness=(0.4, 1.0),
        softness=(0.06, 0.28),
        network=(0.1, 0.8),
        globules=(0.0, 0.45),
        blotch=0.7,
        veil=0.5,
        regression=0.4,
        cysts=0.05,
    ),
    "pink": Kind(
        weight=0.09,
        melanin=(0.0, 0.14),
        blood=(0.10, 0.42),
        deep=(0.0, 0.03),
        patches=(0.10, 0.40),
        gradient=(-0.3, 0.7),
        raggedness=(0.15, 0.6),
        softness=(0.12, 0.40),
        network=(0.0, 0.1),
        globules=(0.0, 0.3),
        regression=0.15,
    ),
    "keratosis": Kind(
        weight=0.10,
        melanin=(0.08, 0.65),
        blood=(0.0, 0.08),
        deep=(0.0, 0.18),
        patches=(0.15, 0.50),
        gradient=(-0.6, 0.3),
        raggedness=(0.15, 0.5),
        softness=(0.02, 0.10),
        network=(0.0, 0.1),
        globules=(0.1, 0.4),
        blotch=0.1,
        cysts=0.7,
        fissures=0.45,
    ),
    "blue naevus": Kind(
        weight=0.04,
        melanin=(0.02, 0.25),
        blood=(0.0, 0.08),
        deep=(0.25, 0.65),
        patches=(0.05, 0.30),
        gradient=(0.0, 0.9),
        raggedness=(0.1, 0.4),
        softness=(0.10, 0.35),
        network=(0.0, 0.05),
        globules=(0.0, 0.1),
        keratin=(0.0, 0.04),
    ),
}


def draw_kind(rng: Generator) -> Kind:
    """Choose a kind with a chance proportional to its weight."""
    kinds = list(KINDS.values())
    weights = np.array([kind.weight for kind in kinds])
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
