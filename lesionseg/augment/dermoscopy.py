"""Artefacts of dermoscopes and contact gel, and hair, drawn and removed.

Artefacts are drawn as opacity layers, uint8 [H, W] from 0 (transparent) to 255 (opaque), that are
painted over an image. Sizes are fractions of its shorter side. Masks do not change.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

Params = dict[str, Any]
Picture = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = Iterable[float]
Layer = tuple[Picture, Colour]

#: Fractional bits of the coordinates passed to OpenCV.
_FRACTION_BITS = 4


class DrawnArtefact(A.ImageOnlyTransform):  # type: ignore[misc]
    """A transform of the image alone whose layers depend only on the image's size.

    Args:
        strength: scales the effect, in [0, 1].
        p: probability.
    """

    def __init__(self, strength: float = 0.5, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params_dependent_on_data(self, params: Params, data: Params) -> Params:
        return {"layers": self.draw(*params["shape"][:2])}

    @abstractmethod
    def draw(self, height: int, width: int) -> list[Layer]:
        """Draw random layers in painting order; each transform has a fixed number of them."""

    def apply(self, img: Picture, layers: list[Layer], **params: Any) -> Picture:
        for layer, colour in layers:
            img = paint_layer(img, layer, colour)
        return img


def empty_layer(height: int, width: int) -> Picture:
    """Return a transparent layer."""
    return np.zeros((height, width), np.uint8)


def draw_lines(
    layer: Picture, curves: Iterable[Points], widths: Iterable[float], opacity: float
) -> None:
    """Draw lines on a layer.

    Args:
        layer: uint8 [H, W], changed in place.
        curves: the (x, y) in pixels of each line, [n, 2].
        widths: width of each line in pixels; below 1, a line of one pixel with less opacity.
        opacity: in [0, 1].
    """
    for curve, width in zip(curves, widths, strict=True):
        shade = round(255 * opacity * min(1.0, width))
        points = np.round(curve * 2**_FRACTION_BITS).astype(np.int32)
        thickness = max(1, round(width))
        cv2.polylines(layer, [points], False, shade, thickness, cv2.LINE_AA, _FRACTION_BITS)


def draw_ellipse(
    layer: Picture, centre: Points, axes: Points, angle: float, opacity: float, width: float = 0
) -> None:
    """Draw an ellipse on a layer.

    Args:
        layer: uint8 [H, W], changed in place.
        centre: (x, y) in pixels.
        axes: the two half axes in pixels.
        angle: of the first axis, in degrees.
        opacity: in [0, 1].
        width: width of the line in pixels; 0 fills the ellipse.
    """
    x_y, half = (tuple(int(v) for v in np.round(a * 2**_FRACTION_BITS)) for a in (centre, axes))
    shade = round(255 * opacity * (min(1.0, width) if width else 1.0))
    thickness = max(1, round(width)) if width else -1
    cv2.ellipse(layer, x_y, half, angle, 0, 360, shade, thickness, cv2.LINE_AA, _FRACTION_BITS)


def blur_layer(layer: Picture, sigma: float) -> Picture:
    """Blur a layer by ``sigma`` pixels; below a third of a pixel, return it unchanged."""
    return layer if sigma < 1 / 3 else cv2.GaussianBlur(layer, (0, 0), sigma)  # type: ignore[return-value]


def paint_layer(image: Picture, layer: Picture, colour: Colour) -> Picture:
    """Paint a colour (three values in [0, 255]) over an image with the layer's opacity."""
    # In 8-bit integers, which OpenCV computes several times faster than NumPy does floats.
    transparency = cv2.cvtColor(cv2.bitwise_not(layer), cv2.COLOR_GRAY2RGB)
    cover = cv2.merge([cv2.convertScaleAbs(layer, alpha=c / 255) for c in colour])
    return cv2.add(cv2.multiply(image, transparency, scale=1 / 255), cover)  # type: ignore[return-value]


class Ruler(DrawnArtefact):
    """Draws the millimetre marks of a contact plate along one side, every fifth one longer.

    Half of the rulers have a base line. ``strength`` increases size and darkness.
    """

    def draw(self, height: int, width: int) -> list[Layer]:
        rng = self.random_generator
        gap = rng.uniform(0.02, 0.03 + 0.03 * self.strength)
        x = np.arange(rng.uniform(0, 0.4), rng.uniform(0.6, 1), gap)
        base = rng.uniform(0.02, 0.15) + rng.normal(0, 0.08) * (x - 0.5)
        long = (np.arange(len(x)) + rng.integers(5)) % 5 == 0
        tip = base + gap * np.where(long, 1.6, 0.9)
        marks = np.stack([np.stack([x, base], -1), np.stack([x, tip], -1)], axis=1)
        if rng.random() < 0.5:
            marks = np.concatenate([marks, marks[None, [0, -1], 0]])
        for _ in range(int(rng.integers(4))):  # rotate the unit square by a quarter turn
            marks = np.stack([1 - marks[..., 1], marks[..., 0]], axis=-1)
        line = rng.uniform(0.003, 0.004 + 0.003 * self.strength) * min(height, width)
        layer, opacity = empty_layer(height, width), rng.uniform(0.35, 0.45 + 0.5 * self.strength)
        draw_lines(layer, marks * (width, height), [line] * len(marks), opacity)
        return [(layer, (25, 22, 25))]


class Bubbles(DrawnArtefact):
    """Draws air bubbles in the gel: a dark rim, a bright one within it, and a highlight.

    ``strength`` increases number (at most 12) and size (at most a twelfth of the side).
    """

    def draw(self, height: int, width: int) -> list[Layer]:
        rng, size = self.random_generator, min(height, width)
        count = int(rng.integers(1, 4 + round(9 * self.strength)))
        # Uniform on a logarithmic scale: most bubbles are small.
        largest = 0.02 + 0.06 * self.strength
        radii = np.exp(rng.uniform(np.log(0.008), np.log(largest), count)) * size
        centres = rng.uniform(0, 1, (count, 2)) * (width, height)
        light = rng.uniform(0, 2 * np.pi)
        opacity = rng.uniform(0.3, 0.4 + 0.4 * self.strength)
        dark, bright = empty_layer(height, width), empty_layer(height, width)
        toward = np.array([np.cos(light), np.sin(light)])
        for centre, radius in zip(centres, np.maximum(radii, 1.0), strict=True):
            round_ = np.array([radius, radius])
            draw_ellipse(bright, centre, round_, 0, 0.15 * opacity)
            draw_ellipse(dark, centre, round_, 0, 0.45 * opacity, width=0.1 * radius)
            draw_ellipse(bright, centre, 0.86 * round_, 0, 0.45 * opacity, width=0.14 * radius)
            draw_ellipse(bright, centre + 0.5 * radius * toward, 0.17 * round_, 0, opacity)
        dark, bright = (blur_layer(layer, 0.002 * size) for layer in (dark, bright))
        return [(dark, (45, 35, 35)), (bright, (255, 252, 248))]


class Vignette(DrawnArtefact):
    """Darkens the corners outside a round field of view.

    ``strength`` reduces the radius, down to 0.8 of the half diagonal, and the width of the edge.
    """

    def draw(self, height: int, width: int) -> list[Layer]:
        rng, half = self.random_generator, float(np.hypot(height, width)) / 2
        soft = rng.uniform(1 - self.strength, 1)
        centre = np.array([width, height]) * (0.5 + rng.normal(0, 0.015, 2))
        radius = half * rng.uniform(0.97 - 0.17 * self.strength, 0.97)
        # The edge of a tube is sharp and black; the light of a lamp fades gradually.
        edge, dark = half * 0.01 * 40**soft, 0.97 - 0.4 * soft
        x = np.arange(width, dtype=np.float32) - np.float32(centre[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(centre[1])
        outside = np.clip((np.sqrt(x * x + y * y) - np.float32(radius)) / np.float32(edge), 0, 1)
        return [(np.rint(outside * np.float32(255 * dark)).astype(np.uint8), (8, 6, 6))]


class Glare(DrawnArtefact):
    """Draws reflections of a lamp on wet skin: soft white spots, close together.

    ``strength`` increases number (at most 9), size (at most a twentieth of the side), opacity.
    """

    def draw(self, height: int, width: int) -> list[Layer]:
        rng, size = self.random_generator, min(height, width)
        count = int(rng.integers(1, 4 + round(6 * self.strength)))
        middle = rng.uniform(0.1, 0.9, 2) * (width, height)
        wide = np.maximum(rng.uniform(0.006, 0.01 + 0.04 * self.strength, count) * size, 0.5)
        centres = middle + rng.normal(0, 0.08, (count, 2)) * size
        axes = np.stack([wide, wide * rng.uniform(0.25, 0.8, count)], axis=1)
        angles = rng.uniform(0, 180, count)
        opacity = rng.uniform(0.4, 0.5 + 0.5 * self.strength)
        layer = empty_layer(height, width)
        for centre, half, angle in zip(centres, axes, angles, strict=True):
            draw_ellipse(layer, centre, half, float(angle), opacity)
        return [(blur_layer(layer, 0.008 * size), (255, 253, 248))]


class Hair(DrawnArtefact):
    """Draws dark, thin, slightly bent hairs of similar direction.

    ``strength`` increases number (at most 4 to 28), width and darkness.
    """

    def draw(self, height: int, width: int) -> list[Layer]:
        rng, size = self.random_generator, min(height, width)
        count = int(rng.integers(2, 5 + round(24 * self.strength)))
        start = rng.uniform(-0.1, 1.1, (count, 2)) * (width, height)
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.5, count)
        along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        reach = along * rng.uniform(0.25, 0.9, (count, 1)) * size
        bend = along[:, ::-1] * (-1, 1) * rng.normal(0, 0.12, (count, 1)) * size
        curves = _bezier_curves(start, start + reach / 2 + bend, start + reach)
        widths = rng.uniform(0.0025, 0.0035 + 0.0035 * self.strength, count) * size
        colour = np.array([60, 42, 36]) * rng.uniform(0.3, 1.2)
        layer, opacity = empty_layer(height, width), rng.uniform(0.4, 0.55 + 0.4 * self.strength)
        draw_lines(layer, curves, widths, opacity)
        return [(layer, colour)]


def _bezier_curves(start: Points, control: Points, end: Points) -> Points:
    """Return quadratic Bezier curves [n, 14, 2] of three points [n, 2] each."""
    t, (a, b, c) = np.linspace(0, 1, 14)[:, None], (p[:, None] for p in (start, control, end))
    return np.asarray((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)


class HairRemoval(A.ImageOnlyTransform):  # type: ignore[misc]
    """Removes dark thin hairs as DullRazor does; Lee et al. 1997, 10.1016/S0010-4825(97)00020-6.

    Long lines darker than both their sides are found by the black-hat transform (closing minus
    image) and inpainted. ``strength`` lowers the contrast from which on lines are removed.
    """

    def __init__(self, strength: float = 0.5, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> Params:
        """Draw ``threshold``: by how many grey levels a line must be darker than its sides."""
        faintest = 32 - 16 * self.strength
        return {"threshold": self.random_generator.uniform(faintest, faintest + 10)}

    def apply(self, img: Picture, threshold: float, **params: Any) -> Picture:
        lines = _long_dark_lines(img, threshold)
        return cv2.inpaint(img, lines, 2, cv2.INPAINT_TELEA) if lines.any() else img  # type: ignore[return-value]


def _long_dark_lines(image: Picture, threshold: float) -> Picture:
    """Return a layer [H, W] in {0, 255} of the lines, dilated by one pixel."""
    size = min(image.shape[:2])
    # Wider than hairs, narrower than the streaks of a lesion.
    width = max(3, round(0.05 * size) | 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    square = cv2.getStructuringElement(cv2.MORPH_RECT, (width, width))
    darker = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, square) > threshold
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(darker.astype(np.uint8))
    long = boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) > 0.12 * size
    long[0] = False  # the background
    # Inpainting from a hair's edge, which is half hair, would leave a shadow.
    return cv2.dilate(long.astype(np.uint8)[labels] * 255, np.ones((3, 3)))  # type: ignore[return-value]


def artefacts(strength: float, share: float = 1.0) -> list[A.BasicTransform]:
    """Return all artefacts of a strength in [0, 1] in their optical order: hair, gel, plate, tube.

    ``share`` in [0, 1] scales the probabilities.
    """
    probabilities = {
        # First, because drawn hair is not to be removed.
        HairRemoval: 0.2,
        Hair: 0.4,
        Bubbles: 0.15,
        Glare: 0.2,
        Ruler: 0.2,
        Vignette: 0.3,
    }
    return [kind(strength, p=p * share) for kind, p in probabilities.items()]
