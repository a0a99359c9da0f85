"""The structures dermatologists read in a lesion, each added to its pigments."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lesionseg.data.synthetic._fields import (
    Field,
    Frame,
    Range,
    blur,
    cells,
    chance,
    fractal_noise,
    per_cell,
    ramp,
    smooth_noise,
    within,
)
from lesionseg.data.synthetic._kinds import Kind
from lesionseg.data.synthetic._lesion import Lesion, patches

_FAINT_CHANCE = 0.10
_FAINT: Range = (0.25, 0.6)


def add_structures(rng: Generator, frame: Frame, kind: Kind, lesion: Lesion) -> None:
    """Add what a lesion of this kind shows; some lesions then fade as a whole."""
    _weave_network(rng, frame, lesion, within(rng, kind.network))
    _strew_globules(rng, frame, lesion, within(rng, kind.globules))
    structures: tuple[tuple[float, Callable[[Generator, Frame, Lesion], None]], ...] = (
        (kind.blotch, _add_blotch),
        (kind.veil, _add_veil),
        (kind.regression, _add_regression),
        (kind.cysts, _add_cysts),
        (kind.fissures, _add_fissures),
    )
    for probability, add in structures:
        if chance(rng, probability):
            add(rng, frame, lesion)
    if chance(rng, _FAINT_CHANCE):
        lesion.pigments.thin(within(rng, _FAINT))


_DISTINCT_SCALE = 0.14
_DISTINCT: Range = (-1.3, 0.9)


def _distinctness(rng: Generator, frame: Frame) -> Field:
    """How clearly a pattern shows, (H, W) in 0..1: more here than there."""
    return ramp(smooth_noise(rng, frame, _DISTINCT_SCALE), *_DISTINCT)


_MESH: Range = (0.011, 0.025)
_MESH_SHAKE = 0.42
_CORD: Range = (0.13, 0.22)


def _weave_network(rng: Generator, frame: Frame, lesion: Lesion, strength: float) -> None:
    """The pigment network: brown cords around pale holes."""
    mesh = within(rng, _MESH)
    _, cell = cells(rng, frame, mesh, _MESH_SHAKE)
    cords = blur(_borders(cell), within(rng, _CORD) * mesh * frame.unit)
    contrast = cords / max(float(cords.mean()), 1e-6) - 1.0
    lesion.pigments.melanin *= np.maximum(
        1.0 + strength * _distinctness(rng, frame) * contrast, 0.0
    )


def _borders(cell: NDArray[np.int32]) -> Field:
    """1 where a pixel's cell is not that of the pixel to the left or above, else 0; (H, W)."""
    border = np.zeros(cell.shape, dtype=np.float32)
    border[:, 1:] = cell[:, 1:] != cell[:, :-1]
    border[1:] = np.maximum(border[1:], cell[1:] != cell[:-1])
    return border


_GLOBULE_SPACING: Range = (0.018, 0.050)
_GLOBULE_SHAKE = 0.45
_GLOBULE_SIZE: Range = (0.10, 0.55)
_GLOBULE_DENT = 0.07
_GLOBULE_DENT_SCALE = 0.3
_GLOBULE_CONTRAST = 1.3
_GLOBULE_COVER = 0.25


def _strew_globules(rng: Generator, frame: Frame, lesion: Lesion, strength: float) -> None:
    """Roundish clods of pigment of varying size."""
    spacing = within(rng, _GLOBULE_SPACING)
    distance, cell = cells(rng, frame, spacing, _GLOBULE_SHAKE)
    distance += _GLOBULE_DENT * smooth_noise(rng, frame, _GLOBULE_DENT_SCALE * spacing)
    size = per_cell(rng, cell, _GLOBULE_SIZE)
    contrast = _GLOBULE_CONTRAST * (ramp(distance, size, 0.35 * size) - _GLOBULE_COVER)
    lesion.pigments.melanin *= 1.0 + strength * _distinctness(rng, frame) * contrast


_INWARDS = 0.6
_SOFT: Range = (-0.4, 1.2)


def _part(rng: Generator, frame: Frame, lesion: Lesion, scale: float, threshold: Range) -> Field:
    """A soft irregular part of the lesion, (H, W) in 0..1, rather inside than at the rim."""
    relative = lesion.outline.radius_px / frame.unit
    noise = fractal_noise(rng, frame, scale * relative, octaves=5, fall=0.58)
    noise += _INWARDS * np.minimum(lesion.outline.depth(), 0.5)
    level = within(rng, threshold)
    return ramp(noise, level + _SOFT[0], level + _SOFT[1])


_BLOTCH_SCALE = 0.32
_BLOTCH_THRESHOLD: Range = (0.4, 1.1)
_BLOTCH_MELANIN: Range = (0.2, 1.0)
_BLOTCH_DEEP: Range = (0.0, 0.35)


def _add_blotch(rng: Generator, frame: Frame, lesion: Lesion) -> None:
    """A structureless dark brown to black part."""
    blotch = _part(rng, frame, lesion, _BLOTCH_SCALE, _BLOTCH_THRESHOLD)
    lesion.pigments.melanin += within(rng, _BLOTCH_MELANIN) * blotch
    lesion.pigments.deep += within(rng, _BLOTCH_DEEP) * blotch


_VEIL_SCALE = 0.4
_VEIL_THRESHOLD: Range = (0.3, 0.9)
_VEIL_DEEP: Range = (0.15, 0.55)
_VEIL_UNEVEN = 0.4
_VEIL_HIDES: Range = (0.2, 0.6)
_VEIL_WHITE: Range = (0.0, 0.15)


def _add_veil(rng: Generator, frame: Frame, lesion: Lesion) -> None:
    """The blue-white veil: deep melanin under a milky haze that hides the brown."""
    veil = _part(rng, frame, lesion, _VEIL_SCALE, _VEIL_THRESHOLD)
    uneven = np.exp(_VEIL_UNEVEN * patches(rng, frame, lesion.outline))
    lesion.pigments.deep += within(rng, _VEIL_DEEP) * veil * uneven
    lesion.pigments.melanin *= 1.0 - within(rng, _VEIL_HIDES) * veil
    lesion.whiten(within(rng, _VEIL_WHITE) * veil)


_REGRESSION_SCALE = 0.3
_REGRESSION_THRESHOLD: Range = (0.5, 1.0)
_REGRESSION_LOSS: Range = (0.6, 0.95)
_REGRESSION_WHITE: Range = (0.1, 0.5)
_PEPPER_SCALE = 0.0035
_PEPPER_GRAIN: Range = (0.9, 2.0)
_PEPPER: Range = (0.1, 0.35)


def _add_regression(rng: Generator, frame: Frame, lesion: Lesion) -> None:
    """White scar-like areas, peppered with blue-grey dots."""
    scarred = _part(rng, frame, lesion, _REGRESSION_SCALE, _REGRESSION_THRESHOLD)
    lesion.pigments.melanin *= 1.0 - within(rng, _REGRESSION_LOSS) * scarred
    lesion.whiten(within(rng, _REGRESSION_WHITE) * scarred)
    grains = ramp(smooth_noise(rng, frame, _PEPPER_SCALE), *_PEPPER_GRAIN)
    lesion.pigments.deep += within(rng, _PEPPER) * grains * scarred


_CYST_SPACING: Range = (0.03, 0.08)
_CYST_SHAKE = 0.5
_CYST_SIZE: Range = (0.08, 0.28)
_CYST_DENT = 0.05
_CYST_DENT_SCALE = 0.006
_MILIA_SHARE = 0.5
_MILIA_WHITE: Range = (0.2, 0.6)
_COMEDO_MELANIN: Range = (0.2, 0.7)


def _add_cysts(rng: Generator, frame: Frame, lesion: Lesion) -> None:
    """Milia-like cysts (white dots) and comedo-like openings (dark ones)."""
    distance, cell = cells(rng, frame, within(rng, _CYST_SPACING), _CYST_SHAKE)
    distance += _CYST_DENT * smooth_noise(rng, frame, _CYST_DENT_SCALE)
    size = per_cell(rng, cell, _CYST_SIZE)
    # Half of the draws are below zero: half of the cells hold nothing.
    dots = ramp(distance, size, 0.2 * size) * np.maximum(per_cell(rng, cell, (-1.0, 1.0)), 0.0)
    milia = per_cell(rng, cell) < _MILIA_SHARE
    lesion.whiten(within(rng, _MILIA_WHITE) * dots * milia)
    lesion.pigments.melanin += within(rng, _COMEDO_MELANIN) * dots * ~milia


_FISSURE_SCALE: Range = (0.012, 0.03)
_FISSURE_EDGES: Range = (0.22, 0.02)
_PALE_FISSURE_CHANCE = 0.5
_FISSURE_WHITE: Range = (0.1, 0.3)
_FISSURE_MELANIN: Range = (0.1, 0.4)


def _add_fissures(rng: Generator, frame: Frame, lesion: Lesion) -> None:
    """The brain-like furrows of a keratosis, paler or darker than its ridges."""
    noise = smooth_noise(rng, frame, within(rng, _FISSURE_SCALE))
    furrows = ramp(np.abs(noise), *_FISSURE_EDGES)
    if chance(rng, _PALE_FISSURE_CHANCE):
        lesion.whiten(within(rng, _FISSURE_WHITE) * furrows)
    else:
        lesion.pigments.melanin += within(rng, _FISSURE_MELANIN) * furrows
