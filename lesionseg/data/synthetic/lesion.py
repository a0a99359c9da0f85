"""Lesions: outline, kinds, pigments and dermoscopic structures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.synthetic.fields import (
    Field,
    FieldSampler,
    Points,
    Range,
    as_field,
    smoothstep,
)

#: Channels of a field of pigments [5, H, W]. SCAR: how far white tissue hides the others.
MELANIN, BLOOD, DEEP, KERATIN, SCAR = range(5)
#: Optical density per RGB channel: an amount d of a pigment transmits exp(-d * density). Melanin
#: is brown near the surface and blue-grey deep in the dermis.
_DENSITIES = as_field(
    [(0.44, 1.00, 1.48), (0.14, 1.00, 0.80), (1.06, 0.98, 0.68), (0.02, 0.22, 1.00)]
)


def transmittance(pigments: Field) -> Field:
    """Return the share of light [H, W, 3] that pigments transmit."""
    return as_field(np.exp(-np.tensordot(pigments[:SCAR], _DENSITIES, axes=(0, 0))))


@dataclass(frozen=True)
class Kind:
    """Ranges from which the lesions of one kind are drawn."""

    weight: float  # relative frequency
    melanin: Range
    blood: Range
    deep: Range
    patches: Range  # unevenness of the melanin
    gradient: Range  # positive for a darker center
    raggedness: Range  # of the outline: 0 is a smooth oval, 1 highly irregular
    softness: Range  # half the width of the edge relative to the radius
    network: Range  # contrast
    globules: Range  # contrast
    blotch: float = 0.0  # probabilities of structures
    veil: float = 0.0
    regression: float = 0.0
    cysts: float = 0.0


# fmt: off
KINDS = {
    "reticular nevus": Kind(
        0.26, (0.08, 0.65), (0.0, 0.08), (0.0, 0.08), (0.15, 0.52), (-0.3, 1.8), (0.25, 0.8),
        (0.08, 0.32), (0.25, 0.85), (0.0, 0.15), blotch=0.25, veil=0.05, regression=0.05),
    "globular nevus": Kind(
        0.15, (0.07, 0.50), (0.0, 0.14), (0.0, 0.16), (0.15, 0.48), (-0.5, 1.2), (0.2, 0.65),
        (0.05, 0.25), (0.0, 0.35), (0.2, 0.7), blotch=0.1, cysts=0.1),
    "homogeneous nevus": Kind(
        0.17, (0.06, 0.50), (0.0, 0.16), (0.0, 0.16), (0.08, 0.35), (-0.4, 1.8), (0.12, 0.5),
        (0.08, 0.38), (0.0, 0.15), (0.0, 0.15), blotch=0.15),
    "multicoloured": Kind(
        0.19, (0.16, 0.95), (0.02, 0.22), (0.0, 0.16), (0.30, 0.75), (-0.4, 1.2), (0.4, 1.0),
        (0.06, 0.28), (0.1, 0.8), (0.0, 0.45), blotch=0.7, veil=0.5, regression=0.4, cysts=0.05),
    "pink": Kind(
        0.09, (0.0, 0.14), (0.10, 0.42), (0.0, 0.03), (0.10, 0.40), (-0.3, 0.7), (0.15, 0.6),
        (0.12, 0.40), (0.0, 0.1), (0.0, 0.3), regression=0.15),
    "keratosis": Kind(
        0.10, (0.08, 0.65), (0.0, 0.08), (0.0, 0.18), (0.15, 0.50), (-0.6, 0.3), (0.15, 0.5),
        (0.02, 0.10), (0.0, 0.1), (0.1, 0.4), blotch=0.1, cysts=0.7),
    "blue nevus": Kind(
        0.04, (0.02, 0.25), (0.0, 0.08), (0.25, 0.65), (0.05, 0.30), (0.0, 0.9), (0.1, 0.4),
        (0.10, 0.35), (0.0, 0.05), (0.0, 0.1)),
}
# fmt: on


@dataclass(frozen=True)
class Outline:
    """Place and extent of a lesion."""

    mask: NDArray[np.bool_]  # never empty, one component without holes
    inside_px: Field  # signed distance to the contour, positive inside
    coverage: Field  # 0 to 1, above one half exactly inside the mask
    radius_px: float  # of a disc of the nominal area
    center_px: Points  # [2]


def draw_outline(s: FieldSampler, raggedness: float, softness: float) -> Outline:
    """Draw an outline; see ``Kind`` for the arguments."""
    # The area relative to the image exceeds 1 for lesions larger than the field of view.
    area = float(np.clip(0.165 * s.rng.lognormal(0.0, 1.08), 0.010, 1.7))
    radius_px = max(math.sqrt(area * s.height * s.width / math.pi), 2.5)
    spread = 0.14 if s.chance(0.12) else 0.04
    center_px = np.clip(s.rng.normal(0.5, spread, 2), 0.12, 0.88) * (s.size_px - 1.0)
    mask = _draw_mask(s, radius_px, center_px, raggedness)
    inside_px = signed_distance(mask)
    width = min(softness * radius_px, 0.05 * s.unit_px) * np.exp(0.45 * s.noise(0.2))
    width = np.maximum(width, 0.9)
    return Outline(mask, inside_px, smoothstep(inside_px, -width, width), radius_px, center_px)


def _draw_mask(
    s: FieldSampler, radius_px: float, center_px: Points, raggedness: float
) -> NDArray[np.bool_]:
    """Draw a warped, lobed and roughened ellipse."""
    scale = radius_px / s.unit_px
    column, row = np.rint(center_px).astype(int)
    stretch = math.sqrt(min(1.0 + 0.24 * s.rng.lognormal(0.0, 0.7), 2.6))
    angle = s.uniform(0.0, math.pi)
    x, y = (axis / radius_px for axis in s.grid(center_px))
    u = (x * math.cos(angle) + y * math.sin(angle)) / stretch
    v = (y * math.cos(angle) - x * math.sin(angle)) * stretch
    for axis in (u, v):
        warp = s.noise(0.38 * scale)
        axis += 0.2 * raggedness * (warp - warp[row, column])
    reach = 1.0 + raggedness * _lobes(s, np.arctan2(v, u))
    rough = 0.09 * raggedness * s.noise(0.085 * scale, octaves=3, falloff=0.7)
    inside = np.maximum(reach, 0.3) - np.hypot(u, v) + rough > 0.0
    inside[row, column] = True
    _, labels = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    component = np.asarray(labels == labels[row, column], dtype=np.uint8)
    contours, _ = cv2.findContours(component, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(component, contours, -1, color=(1,), thickness=cv2.FILLED)
    return component.astype(np.bool_)


def _lobes(s: FieldSampler, angle: Field) -> Field:
    """Return the deviation of the radius per direction: lobes, sometimes fine projections."""
    waves = [(2, 0.080), (3, 0.053), (4, 0.040), (5, 0.032)]
    if s.chance(0.15):
        waves += [(order, 0.05) for order in s.rng.integers(9, 26, size=4).tolist()]
    turns = np.linspace(-math.pi, math.pi, 512)
    table = np.zeros(len(turns))
    for order, amplitude in waves:
        phase = s.uniform(0.0, 2.0 * math.pi)
        table += amplitude * s.rng.standard_normal() * np.cos(order * turns + phase)
    return as_field(np.interp(angle, turns, table))


def signed_distance(mask: NDArray[np.bool_]) -> Field:
    """Return the distance in pixels to the contour between pixels, at most the diagonal."""
    inside, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for side in (mask, ~mask)
    )
    # The transform measures to the center of the nearest pixel, half a pixel too far.
    signed = np.where(mask, inside - 0.5, 0.5 - outside)
    return as_field(np.minimum(signed, math.hypot(*mask.shape)))


def draw_lesion(s: FieldSampler, kind: Kind, outline: Outline) -> Field:
    """Draw the pigments [5, H, W] of a lesion that fills the image."""
    radius = outline.radius_px / s.unit_px
    depth = np.clip(outline.inside_px / outline.radius_px, 0.0, 1.0)

    def patches() -> Field:
        scale = s.uniform(0.2, 0.5) * radius
        return s.noise(scale, max(math.ceil(math.log2(scale / 0.01)), 1))

    # The pigment builds up from a faint, frayed rim inwards.
    rim, frayed = s.uniform(0.12, 0.9), depth + 0.06 * s.noise(0.07 * radius, 3, falloff=0.8)
    front = rim + (1.0 - rim) * smoothstep(frayed, 0.0, s.uniform(0.15, 0.5))
    uneven = s.uniform(*kind.patches) * patches() + s.uniform(*kind.gradient) * (depth - 0.35)
    uneven += s.uniform(0.03, 0.15) * s.noise(0.010, octaves=2, falloff=1.0)
    spread, tint = front * np.exp(uneven), s.uniform(0.4, 1.2) * patches()
    pigments = np.zeros((5, *s.shape), dtype=np.float32)
    pigments[MELANIN] = s.uniform(*kind.melanin) * spread
    pigments[BLOOD] = s.uniform(*kind.blood) * front * (0.35 + smoothstep(patches(), -0.8, 1.8))
    pigments[DEEP] = s.uniform(*kind.deep) * spread * np.exp(0.7 * tint)
    pigments[KERATIN] = s.uniform(0.03, 0.28) * front * np.exp(0.5 * tint)
    for contrast, add in ((kind.network, _add_network), (kind.globules, _add_globules)):
        if (strength := s.uniform(*contrast)) > 0.1:  # weaker patterns are invisible
            add(s, pigments, strength)
    _add_regions(s, pigments, kind, radius, 0.6 * np.minimum(depth, 0.5))
    if s.chance(kind.cysts):
        _add_cysts(s, pigments)
    if s.chance(0.2):  # faint lesions
        pigments *= s.uniform(0.2, 0.6)
    return pigments


def _add_network(s: FieldSampler, pigments: Field, contrast: float) -> None:
    """Add a pigment network: brown lines around pale holes."""
    spacing = s.uniform(0.011, 0.025)
    _, label = s.cells(spacing)
    border = np.zeros(s.shape, dtype=np.float32)
    border[1:, 1:] = (label[1:, 1:] != label[1:, :-1]) | (label[1:, 1:] != label[:-1, 1:])
    lines = s.blur(border, s.uniform(0.13, 0.22) * spacing)
    relief = smoothstep(s.noise(0.14), -1.3, 0.9) * (lines / max(float(lines.mean()), 1e-6) - 1.0)
    pigments[MELANIN] *= np.maximum(1.0 + contrast * relief, 0.0)


def _add_globules(s: FieldSampler, pigments: Field, contrast: float) -> None:
    """Add roundish clods of pigment of varying size."""
    spacing = s.uniform(0.018, 0.050)
    distance, label = s.cells(spacing)
    distance += 0.07 * s.noise(0.3 * spacing)
    size = s.per_cell(label, 0.10, 0.55)
    relief = 1.3 * (smoothstep(distance, size, 0.35 * size) - 0.25)
    pigments[MELANIN] *= 1.0 + contrast * smoothstep(s.noise(0.14), -1.3, 0.9) * relief


def _add_regions(
    s: FieldSampler, pigments: Field, kind: Kind, radius: float, inwards: Field
) -> None:
    """Add a black blotch, a blue-white veil and white regression with blue-grey peppering."""

    def region(scale: float, level: float) -> Field:
        noise = s.noise(scale * radius, octaves=5) + inwards
        return smoothstep(noise, level - 0.4, level + 1.2)

    if s.chance(kind.blotch):
        blotch = region(0.32, s.uniform(0.4, 1.1))
        pigments[MELANIN] += s.uniform(0.2, 1.0) * blotch
        pigments[DEEP] += s.uniform(0.0, 0.35) * blotch
    if s.chance(kind.veil):
        veil = region(0.4, s.uniform(0.3, 0.9))
        pigments[DEEP] += s.uniform(0.15, 0.55) * veil * np.exp(0.4 * s.noise(0.3 * radius, 4))
        pigments[MELANIN] *= 1.0 - s.uniform(0.2, 0.6) * veil
        pigments[SCAR] += s.uniform(0.0, 0.15) * veil
    if s.chance(kind.regression):
        scarred = region(0.3, s.uniform(0.5, 1.0))
        pigments[MELANIN] *= 1.0 - s.uniform(0.6, 0.95) * scarred
        pigments[SCAR] += s.uniform(0.1, 0.5) * scarred
        pigments[DEEP] += s.uniform(0.1, 0.35) * smoothstep(s.noise(0.0035), 0.9, 2.0) * scarred


def _add_cysts(s: FieldSampler, pigments: Field) -> None:
    """Add milia-like cysts (white dots) and comedo-like openings (dark dots)."""
    distance, label = s.cells(s.uniform(0.03, 0.08), jitter=0.5)
    distance += 0.05 * s.noise(0.006)
    size, strength = s.per_cell(label, 0.08, 0.28), s.per_cell(label, -1.0, 1.0)
    dots = smoothstep(distance, size, 0.2 * size)
    pigments[SCAR] += s.uniform(0.2, 0.6) * dots * smoothstep(strength, 0.5, 1.0)
    pigments[MELANIN] += s.uniform(0.2, 0.7) * dots * smoothstep(strength, -0.5, -1.0)
