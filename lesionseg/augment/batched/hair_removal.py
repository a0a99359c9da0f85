"""Hair removed from batches: the host's way, but for two steps that have no like in torch.

Components are not labelled: how far one reaches is passed on from pixel to pixel, as often as a
long one is long, so that the much curled count as short. What was hair is filled in ring by ring
with the mean of the known pixels around.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lesionseg.augment.batched.pixels import grey


def remove_hair(x: Tensor, threshold: Tensor) -> Tensor:
    """The images, float [n, 3, S, S], without their long dark lines.

    threshold: [n], by how many grey levels a line must be darker than its sides.
    """
    size = min(x.shape[-2:])
    across = max(3, round(0.05 * size) | 1)
    shade = grey(x).round()
    darker = (_closed(shade, across) - shade) > threshold[:, None, None, None]
    found = _grown(_long(darker.float(), 0.12 * size), 3)
    return _filled(x, found, rings=across // 2 + 3)


def _grown(x: Tensor, side: int) -> Tensor:
    """The greatest of the square of that side around each pixel."""
    return F.max_pool2d(x, side, stride=1, padding=side // 2)


def _closed(x: Tensor, side: int) -> Tensor:
    return -_grown(-_grown(x, side), side)


def _long(lines: Tensor, least: float) -> Tensor:
    """Of lines [n, 1, H, W] in {0, 1} those that reach further than ``least`` pixels."""
    height, width = lines.shape[-2:]
    y = torch.arange(height, device=lines.device, dtype=lines.dtype)[:, None].expand(height, width)
    x = torch.arange(width, device=lines.device, dtype=lines.dtype).expand(height, width)
    far = 2.0 * (height + width)
    # The furthest place known to the right, left, bottom and top; outside of lines, none.
    reach = torch.stack([x, -x, y, -y]).expand(len(lines), -1, -1, -1)
    outside = (lines - 1) * far
    reach = reach * lines + outside
    most = far * lines + outside
    times = int(least) + 1
    for _ in range(times):
        reach = torch.minimum(_grown(reach, 3), most)
    extent = torch.maximum(reach[:, 0] + reach[:, 1], reach[:, 2] + reach[:, 3])[:, None] + 1
    long = (extent > least).to(lines.dtype) * lines
    for _ in range(times):
        long = _grown(long, 3) * lines
    return long


def _filled(x: Tensor, gone: Tensor, rings: int) -> Tensor:
    """The images with the pixels of ``gone`` [n, 1, H, W] in {0, 1} filled in from around."""
    known = 1 - gone
    # Colours, and in a fourth channel whether they are known: one mean is that of both.
    filled = torch.cat([x * known, known], dim=1)
    for _ in range(rings):
        near = F.avg_pool2d(filled, 3, stride=1, padding=1)
        mean = near / near[:, 3:].clamp(min=1e-6)
        filled = torch.where(filled[:, 3:] > 0, filled, mean)
    return torch.where(filled[:, 3:] > 0, filled[:, :3], x)
