"""Changes of colour and sharpness of batches, float [n, 3, H, W] in [0, 255].

Parameters are per image, [n] or [n, k]. Unlike in albumentations, results are not rounded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: Weights of red, green and blue in grey; ITU-R BT.601.
GREY = (0.299, 0.587, 0.114)
#: Number of CLAHE tiles along a side.
TILES = 4


def grey(x: Tensor) -> Tensor:
    """Return the grey levels, [n, 1, H, W]."""
    return _mix_channels(x, (GREY,))


def jitter(x: Tensor, before: Tensor, shift: Tensor, after: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, shift the hue, and change them again.

    Args:
        x: images.
        before: coefficients of ``blend`` for k changes before the hue shift, [n, k, 3].
        shift: of the hue, [n].
        after: coefficients for the changes after the hue shift, [n, k, 3].
    """
    for part in before.unbind(dim=1):
        x = blend(x, part)
    x = shift_hue(x, shift)
    for part in after.unbind(dim=1):
        x = blend(x, part)
    return x


def blend(x: Tensor, coefficients: Tensor) -> Tensor:
    """Return a x + b grey + c mean(grey) for ``coefficients`` (a, b, c), [n, 3]."""
    a, b, c = coefficients[:, :, None, None, None].unbind(dim=1)
    levels = grey(x)
    mean = levels.mean(dim=(1, 2, 3), keepdim=True)
    return torch.addcmul(torch.addcmul(c * mean, b, levels), a, x).clamp_(0, 255)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by a fraction of the circle, [n]; value and saturation do not change."""
    value, largest = x.max(dim=1, keepdim=True)
    chroma = value - x.amin(dim=1, keepdim=True)
    # Green - blue where red is the largest channel, blue - red where green is, else red - green.
    difference = (x.roll(-1, dims=1) - x.roll(1, dims=1)).gather(1, largest)
    offset = torch.add(6 * shift[:, None, None, None], largest, alpha=2)
    hue = difference / chroma.clamp(min=1e-6) + offset
    k = (hue + _column((5.0, 3.0, 1.0), x.device)) % 6
    return torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1)


def gamma(x: Tensor, gamma: Tensor) -> Tensor:
    """Return 255 (x / 255)^gamma, gamma [n]."""
    return (x / 255) ** gamma[:, None, None, None] * 255


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each image with its kernel [n, k], k odd, along rows and columns."""
    n, channels, height, width = x.shape
    half = kernel.shape[1] // 2
    kernels = kernel.repeat_interleave(channels, dim=0)[:, None]  # [n * channels, 1, k]
    flat = x.reshape(1, n * channels, height, width)
    flat = F.pad(flat, (half, half, half, half), mode="reflect")
    flat = F.conv2d(flat, kernels[:, :, None, :], groups=n * channels)
    flat = F.conv2d(flat, kernels[:, :, :, None], groups=n * channels)
    return flat.reshape(x.shape)


def paint(x: Tensor, layer: Tensor, colour: Tensor) -> Tensor:
    """Paint a colour [n, 3] over each image with the opacity ``layer``, uint8 [n, H, W]."""
    return torch.lerp(x, colour[:, :, None, None].expand_as(x), layer[:, None].float() / 255)


def clahe(x: Tensor, clip: Tensor) -> Tensor:
    """Equalise the lightness by CLAHE with the clip limit ``clip`` [n].

    Zuiderveld, Graphics Gems IV, 1994.
    """
    lab = to_lab(x)
    lab[:, 0] = _equalise(lab[:, 0], clip)
    return from_lab(lab)


def _equalise(lightness: Tensor, clip: Tensor) -> Tensor:
    """Equalise lightness [n, H, W] in [0, 255] by tile, interpolating between tiles."""
    n, height, width = lightness.shape
    tile_height, tile_width = -(-height // TILES), -(-width // TILES)
    padding = (0, tile_width * TILES - width, 0, tile_height * TILES - height)
    levels = lightness.round().clamp_(0, 255)
    padded = F.pad(levels[:, None], padding, mode="reflect")
    tiles = padded.reshape(n, TILES, tile_height, TILES, tile_width).permute(0, 1, 3, 2, 4)
    tables = _mapping_tables(tiles.reshape(n, TILES * TILES, -1).long(), clip)
    offsets, down, across = _table_offsets(height, width, lightness.device)
    # The tables are indexed as one flat tensor, for the four tiles around each pixel at once.
    image_offsets = _arange(n, lightness.device)[:, None, None] * (TILES * TILES * 256)
    mapped = tables.take(offsets[:, :, None] + (image_offsets + levels.long()))
    left, right = mapped.unbind(dim=1)
    upper, lower = torch.lerp(left, right, across).unbind(dim=0)
    return torch.lerp(upper, lower, down)


def _mapping_tables(levels: Tensor, clip: Tensor) -> Tensor:
    """Return the new level of each level, [n, tiles, 256], for int64 [n, tiles, pixels]."""
    n, count, area = levels.shape
    histogram = torch.zeros(n, count, 256, device=levels.device)
    histogram.scatter_add_(2, levels, torch.ones((), device=levels.device).expand_as(levels))
    limit = (clip * area / 256).floor_().clamp_(min=1)[:, None, None]
    clipped = torch.minimum(histogram, limit)
    excess = (histogram - clipped).sum(dim=2, keepdim=True)
    # As in OpenCV: the excess is distributed evenly and the remainder one by one, which on small
    # tiles favours low levels.
    remainder = excess % 256
    step = (256 / remainder.clamp(min=1)).floor_()
    level = _arange(256, levels.device)
    extra = (level % step == 0) & (level < remainder * step)
    clipped += (excess - remainder) / 256
    return ((clipped + extra).cumsum(dim=2) * (255 / area)).round_().clamp_(0, 255)


@lru_cache
def _table_offsets(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the offsets of the tables of the four tiles around each pixel, and weights.

    Returns:
        Offsets int64 [2, 2, H, W]: upper and lower, left and right tiles. Interpolation weights of
        the lower tiles [H, 1] and of the right tiles [W].
    """
    (rows, down), (columns, across) = (_neighbour_tiles(n, device) for n in (height, width))
    tile = rows[:, None, :, None] * TILES + columns[None, :, None, :]
    return tile * 256, down[:, None], across


def _neighbour_tiles(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tiles before and after each pixel of a side, [2, size], and weights [size]."""
    position = torch.arange(size, device=device) / -(-size // TILES) - 0.5
    before = position.floor()
    tiles = torch.stack([before, before + 1]).long().clamp(0, TILES - 1)
    return tiles, position - before


# Constants are cached, because creating them on a GPU takes time in every batch.


@lru_cache
def _arange(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device)


@lru_cache
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one value per channel, [channels, 1, 1]."""
    return torch.tensor(values, device=device)[:, None, None]


#: Linear RGB to CIE 1931 XYZ under D65, with white at (1, 1, 1).
_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)
#: Cube roots of X, Y, Z to lightness (scaled), a and b, without the offset _BLACK.
_LAB = ((0.0, 116 * 2.55, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_BLACK = (-16 * 2.55, 0.0, 0.0)
_EDGE = 6 / 29


def to_lab(x: Tensor) -> Tensor:
    """Convert sRGB in [0, 255] to CIE L*a*b* with L in [0, 255]; both [n, 3, H, W]."""
    srgb = x / 255
    linear = torch.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)
    t = _mix_channels(linear, _XYZ)
    f = torch.where(t > _EDGE**3, t.clamp(min=1e-6) ** (1 / 3), t / (3 * _EDGE**2) + 4 / 29)
    return _mix_channels(f, _LAB).add_(_column(_BLACK, x.device))


def from_lab(lab: Tensor) -> Tensor:
    """Convert L*a*b* to sRGB, the inverse of ``to_lab``; clipped to [0, 255]."""
    f = _mix_channels(lab - _column(_BLACK, lab.device), _inverse(_LAB))
    t = torch.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4 / 29))
    linear = _mix_channels(t, _inverse(_XYZ)).clamp_(0, 1)
    srgb = torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear
    )
    return srgb * 255


Matrix = tuple[tuple[float, ...], ...]


@lru_cache
def _inverse(rows: Matrix) -> Matrix:
    return tuple(map(tuple, np.linalg.inv(rows).tolist()))


def _mix_channels(x: Tensor, rows: Matrix) -> Tensor:
    """Return weighted sums of the three channels with k rows of weights, [n, k, H, W]."""
    # Without matmul, which on GPUs may round to ten bits (TF32).
    first, second, third = (_column(column, x.device) for column in zip(*rows, strict=True))
    red, green, blue = x[:, :, None].unbind(dim=1)
    return (red * first).addcmul_(green, second).addcmul_(blue, third)
