"""Changes of colour and sharpness on batches: float [n, 3, H, W] in [0, 255], to the same.

Every image has its own values, [n] or [n, k]. What albumentations rounds to whole levels after
each change is not rounded here.
"""

from __future__ import annotations

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
    red, green, blue = x.unbind(dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]


def blend(x: Tensor, blend: Tensor) -> Tensor:
    """a x + b grey + c mean of grey, for ``blend`` [n, 3] = (a, b, c)."""
    a, b, c = (blend[:, i, None, None, None] for i in range(3))
    shade = grey(x)
    mean = shade.mean(dim=(1, 2, 3), keepdim=True)
    return torch.clamp(a * x + b * shade + c * mean, 0, 255)


def turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Hues turned by a part [n] of the whole circle; lightness and saturation stay."""
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    red, green, blue = x.unbind(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * shift[:, None, None]
    parts = []
    for n in (5, 3, 1):
        k = (n + hue) % 6
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, dim=1)


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
    padded = F.pad(light[:, None], whole, mode="reflect")[:, 0]
    tiles = padded.reshape(n, TILES, tall, TILES, wide).permute(0, 1, 3, 2, 4)
    tables = _tables(tiles.reshape(n * TILES * TILES, -1), clip.repeat_interleave(TILES * TILES))
    level = light.round().long().clamp(0, 255)
    (top, bottom, down), (left, right, across) = (
        _between(size, tile, light.device) for size, tile in ((height, tall), (width, wide))
    )
    # One flat table, so that each reading is one gather.
    image = torch.arange(n, device=light.device)[:, None, None] * TILES

    def read(row: Tensor, column: Tensor) -> Tensor:
        which = (image + row[:, None]) * TILES + column
        return tables.flatten()[which * 256 + level]

    upper = torch.lerp(read(top, left), read(top, right), across)
    lower = torch.lerp(read(bottom, left), read(bottom, right), across)
    return torch.lerp(upper, lower, down[:, None])


def _tables(tiles: Tensor, clip: Tensor) -> Tensor:
    """[tiles, 256]: what each level becomes, for values [tiles, pixels]."""
    count, area = tiles.shape
    level = tiles.round().long().clamp(0, 255)
    found = torch.zeros(count, 256, device=tiles.device)
    found.scatter_add_(1, level, torch.ones_like(tiles))
    limit = (clip * area / 256).floor().clamp(min=1)[:, None]
    kept = torch.minimum(found, limit)
    clipped = (found - kept).sum(dim=1, keepdim=True)
    # OpenCV's way: evenly, and the rest one by one, which on small tiles favours the dark.
    each = (clipped / 256).floor()
    rest = clipped - 256 * each
    step = (256 / rest.clamp(min=1)).floor().clamp(min=1)
    place = torch.arange(256, device=tiles.device)
    more = (place % step == 0) & ((place / step).floor() < rest)
    return ((kept + each + more).cumsum(dim=1) * (255 / area)).round().clamp(0, 255)


def _between(size: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each place along a side the tiles before and after it, and how far it is between."""
    place = torch.arange(size, device=device) / tile - 0.5
    before = place.floor()
    part = place - before
    return before.long().clamp(0, TILES - 1), (before.long() + 1).clamp(0, TILES - 1), part


#: CIE 1931 under D65, white as (1, 1, 1): from linear red, green, blue to X, Y, Z.
_XYZ = (
    (0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754),
)
_RGB = np.linalg.inv(_XYZ).tolist()
_EDGE = 6 / 29


def to_lab(x: Tensor) -> Tensor:
    """sRGB in [0, 255] to CIE L*a*b*, L scaled to [0, 255]; [n, 3, H, W] both."""
    part = x / 255
    linear = torch.where(part > 0.04045, ((part + 0.055) / 1.055) ** 2.4, part / 12.92)
    t = _mixed(linear, _XYZ)
    f = torch.where(t > _EDGE**3, t.clamp(min=1e-6) ** (1 / 3), t / (3 * _EDGE**2) + 4 / 29)
    a, b, c = f.unbind(dim=1)
    return torch.stack([(116 * b - 16) * 2.55, 500 * (a - b), 200 * (b - c)], dim=1)


def from_lab(lab: Tensor) -> Tensor:
    """The inverse of ``to_lab``; what no screen can show is cut off."""
    light, a, b = lab.unbind(dim=1)
    middle = (light / 2.55 + 16) / 116
    f = torch.stack([middle + a / 500, middle, middle - b / 200], dim=1)
    t = torch.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4 / 29))
    linear = _mixed(t, _RGB).clamp(0, 1)
    part = torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear
    )
    return part * 255


def _mixed(x: Tensor, rows: tuple[tuple[float, ...], ...] | list[list[float]]) -> Tensor:
    # Numbers rather than a matrix: nothing to bring to the device, and no half precision.
    red, green, blue = x.unbind(dim=1)
    return torch.stack([r * red + g * green + b * blue for r, g, b in rows], dim=1)
