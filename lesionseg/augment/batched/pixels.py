"""Changes of colour and sharpness on batches: float [n, 3, H, W] in [0, 255], to the same.

Every image has its own values, [n] or [n, k]. What albumentations rounds to whole levels after
each change is not rounded here.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: What of red, green and blue makes grey; ITU-R BT.601.
GREY = (0.299, 0.587, 0.114)
#: CLAHE's tiles along a side.
TILES = 4


def grey(x: Tensor) -> Tensor:
    """[n, 1, H, W]."""
    return _mixed(x, (GREY,))


def jitter(x: Tensor, before: Tensor, shift: Tensor, after: Tensor) -> Tensor:
    """Colours as ``before`` [n, k, 3] and ``after`` say, and hues turned in between.

    before, after: (a, b, c) of k changes each, one after the other. shift: [n], of the hue.
    """
    for part in before.unbind(dim=1):
        x = blend(x, part)
    x = turn_hue(x, shift)
    for part in after.unbind(dim=1):
        x = blend(x, part)
    return x


def blend(x: Tensor, blend: Tensor) -> Tensor:
    """a x + b grey + c mean of grey, for ``blend`` [n, 3] = (a, b, c)."""
    a, b, c = blend[:, :, None, None, None].unbind(dim=1)
    shade = grey(x)
    mean = shade.mean(dim=(1, 2, 3), keepdim=True)
    return torch.addcmul(torch.addcmul(c * mean, b, shade), a, x).clamp_(0, 255)


def turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Hues turned by a part [n] of the whole circle; lightness and saturation stay."""
    value, most = x.max(dim=1, keepdim=True)
    chroma = value - x.amin(dim=1, keepdim=True)
    # Green less blue where red is the most, blue less red where green is, red less green.
    apart = (x.roll(-1, dims=1) - x.roll(1, dims=1)).gather(1, most)
    hue = apart / chroma.clamp(min=1e-6) + torch.add(6 * shift[:, None, None, None], most, alpha=2)
    k = (hue + _column((5.0, 3.0, 1.0), x.device)) % 6
    return torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1)


def gamma(x: Tensor, gamma: Tensor) -> Tensor:
    """Values as parts of 255, to the power of gamma [n]."""
    return (x / 255) ** gamma[:, None, None, None] * 255


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Each image with its own kernel [n, k], k odd, along rows and along columns."""
    n, channels, height, width = x.shape
    half = kernel.shape[1] // 2
    own = kernel.repeat_interleave(channels, dim=0)[:, None]  # [n * channels, 1, k]
    flat = x.reshape(1, n * channels, height, width)
    flat = F.pad(flat, (half, half, half, half), mode="reflect")
    flat = F.conv2d(flat, own[:, :, None, :], groups=n * channels)
    flat = F.conv2d(flat, own[:, :, :, None], groups=n * channels)
    return flat.reshape(x.shape)


def paint(x: Tensor, layer: Tensor, colour: Tensor) -> Tensor:
    """A colour [n, 3] over each image as far as its layer, uint8 [n, H, W], is opaque."""
    return torch.lerp(x, colour[:, :, None, None].expand_as(x), layer[:, None].float() / 255)


def clahe(x: Tensor, clip: Tensor) -> Tensor:
    """Contrast-limited adaptive equalisation of lightness, in tiles; ``clip`` [n] is its limit.

    Zuiderveld, Graphics Gems IV, 1994.
    """
    lab = to_lab(x)
    lab[:, 0] = _equalised(lab[:, 0], clip)
    return from_lab(lab)


def _equalised(light: Tensor, clip: Tensor) -> Tensor:
    """Lightness [n, H, W] in [0, 255], each tile by its own histogram, smoothly in between."""
    n, height, width = light.shape
    tall, wide = -(-height // TILES), -(-width // TILES)
    whole = (0, wide * TILES - width, 0, tall * TILES - height)
    level = light.round().clamp_(0, 255)
    padded = F.pad(level[:, None], whole, mode="reflect")
    tiles = padded.reshape(n, TILES, tall, TILES, wide).permute(0, 1, 3, 2, 4)
    tables = _tables(tiles.reshape(n, TILES * TILES, tall * wide).long(), clip)
    corners, down, across = _corners(height, width, light.device)
    # One flat table, so that all readings are one: [2, 2, n, H, W], from the tiles around a pixel.
    own = _counting(n, light.device)[:, None, None] * (TILES * TILES * 256) + level.long()
    read = tables.take(corners[:, :, None] + own)
    left, right = read.unbind(dim=1)
    upper, lower = torch.lerp(left, right, across).unbind(dim=0)
    return torch.lerp(upper, lower, down)


def _tables(level: Tensor, clip: Tensor) -> Tensor:
    """[n, tiles, 256]: what each level becomes, for levels int64 [n, tiles, pixels]."""
    n, count, area = level.shape
    found = torch.zeros(n, count, 256, device=level.device)
    found.scatter_add_(2, level, torch.ones((), device=level.device).expand_as(level))
    limit = (clip * area / 256).floor_().clamp_(min=1)[:, None, None]
    kept = torch.minimum(found, limit)
    clipped = (found - kept).sum(dim=2, keepdim=True)
    # OpenCV's way: evenly, and the rest one by one, which on small tiles favours the dark.
    rest = clipped % 256
    step = (256 / rest.clamp(min=1)).floor_()
    place = _counting(256, level.device)
    more = (place % step == 0) & (place < rest * step)
    kept += (clipped - rest) / 256
    return ((kept + more).cumsum(dim=2) * (255 / area)).round_().clamp_(0, 255)


@lru_cache
def _corners(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pixel where the tables of the four tiles around it begin, int64 [2, 2, H, W].

    The first of the two says whether above or below, the second whether left or right; and how
    far it is between them, [H, 1] and [W].
    """
    (rows, down), (columns, across) = (_between(size, device) for size in (height, width))
    tile = rows[:, None, :, None] * TILES + columns[None, :, None, :]
    return tile * 256, down[:, None], across


def _between(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each place along a side the tiles before and after it, [2, size], and how far between."""
    place = torch.arange(size, device=device) / -(-size // TILES) - 0.5
    before = place.floor()
    both = torch.stack([before, before + 1]).long().clamp(0, TILES - 1)
    return both, place - before


@lru_cache
def _counting(n: int, device: torch.device) -> Tensor:
    """0, 1, ..., int64 [n]; kept, as all that is the same for every batch."""
    return torch.arange(n, device=device)


@lru_cache
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number for each channel, [channels, 1, 1]."""
    return torch.tensor(values, device=device)[:, None, None]


#: CIE 1931 under D65, white as (1, 1, 1): from linear red, green, blue to X, Y, Z.
_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)
#: The cube roots of X, Y, Z to lightness, scaled, and a and b, but for what black has of the first.
_LAB = ((0.0, 116 * 2.55, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_BLACK = (-16 * 2.55, 0.0, 0.0)
_EDGE = 6 / 29


def to_lab(x: Tensor) -> Tensor:
    """sRGB in [0, 255] to CIE L*a*b*, L scaled to [0, 255]; [n, 3, H, W] both."""
    part = x / 255
    linear = torch.where(part > 0.04045, ((part + 0.055) / 1.055) ** 2.4, part / 12.92)
    t = _mixed(linear, _XYZ)
    f = torch.where(t > _EDGE**3, t.clamp(min=1e-6) ** (1 / 3), t / (3 * _EDGE**2) + 4 / 29)
    return _mixed(f, _LAB).add_(_column(_BLACK, x.device))


def from_lab(lab: Tensor) -> Tensor:
    """The inverse of ``to_lab``; what no screen can show is cut off."""
    f = _mixed(lab - _column(_BLACK, lab.device), _inverse(_LAB))
    t = torch.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4 / 29))
    linear = _mixed(t, _inverse(_XYZ)).clamp_(0, 1)
    part = torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear
    )
    return part * 255


Matrix = tuple[tuple[float, ...], ...]


@lru_cache
def _inverse(rows: Matrix) -> Matrix:
    return tuple(map(tuple, np.linalg.inv(rows).tolist()))


def _mixed(x: Tensor, rows: Matrix) -> Tensor:
    """[n, k, H, W]: of each pixel's three values sums with the weights of k rows."""
    # Term by term: as a product of matrices a GPU would round them to ten bits (TF32).
    first, second, third = (_column(column, x.device) for column in zip(*rows, strict=True))
    red, green, blue = x[:, :, None].unbind(dim=1)
    return (red * first).addcmul_(green, second).addcmul_(blue, third)
