"""Application of a plan to a batch, without reading values back from the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lesionseg.augment.batched import pixels
from lesionseg.augment.batched.plan import BatchPlan


@torch.no_grad()
def apply_plan(plan: BatchPlan, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Augment a batch.

    Args:
        plan: the plan, on the device of the images.
        images: uint8 [N, S, S, 3], not changed.
        masks: uint8 [N, S, S] in {0, 1}, not changed.

    Returns:
        Images, float [N, S, S, 3] in [0, 255], and masks, uint8 [N, S, S] in {0, 1}.
    """
    # The permuted view is channels last in memory.
    x, y = images.permute(0, 3, 1, 2).float(), masks[:, None]
    if len(plan.matrix):
        grid = _grid(plan, x.shape[-1])
        x = F.grid_sample(x, grid, "bilinear", "reflection", align_corners=True)
        x = x.contiguous(memory_format=torch.channels_last)
        y = F.grid_sample(y.float(), grid, "nearest", "reflection", align_corners=True)
    for name, values in plan.changes:
        rows = values["rows"]
        params = {k: v for k, v in values.items() if k != "rows"}
        if len(rows) == len(x):  # all images, because rows are in order
            x = CHANGES[name](x, **params)
        else:
            x.index_copy_(0, rows, CHANGES[name](x[rows], **params))
    return x.permute(0, 2, 3, 1), y[:, 0].to(masks.dtype)


def _grid(plan: BatchPlan, size: int) -> Tensor:
    """Return the sampling grid [N, S, S, 2], with the outer pixels' centres at -1 and 1."""
    line = torch.arange(size, dtype=torch.float32, device=plan.matrix.device)
    x, y = line.expand(size, size), line[:, None].expand(size, size)
    if len(plan.bend):
        coarse = plan.bend.permute(0, 3, 1, 2)
        fine = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        x, y = x + fine[:, 0], y + fine[:, 1]
    # Without matmul, which on GPUs may round to ten bits (TF32).
    a, b, to_x, c, d, to_y = plan.matrix.flatten(1)[:, :, None, None].unbind(dim=1)
    read = torch.stack([a * x + b * y + to_x, c * x + d * y + to_y], dim=-1)
    return read * (2 / (size - 1)) - 1


def remove_hair(x: Tensor, threshold: Tensor) -> Tensor:
    """Remove long dark lines.

    As on the host, except for two steps. Components are not labelled: their extent is propagated
    from pixel to pixel, for as many steps as the minimum length, so that curled lines count as
    short. Removed pixels are filled ring by ring with the mean of the known pixels around them.

    Args:
        x: images, float [n, 3, S, S] in [0, 255].
        threshold: [n], by how many grey levels a line must be darker than its sides.
    """
    size = min(x.shape[-2:])
    width = max(3, round(0.05 * size) | 1)
    levels = pixels.grey(x).round()
    darker = (_close(levels, width) - levels) > threshold[:, None, None, None]
    lines = _dilate(_keep_long(darker.float(), 0.12 * size), 3)
    return _fill(x, lines, rings=width // 2 + 3)


def _dilate(x: Tensor, side: int) -> Tensor:
    """Return the maximum over a square around each pixel."""
    return F.max_pool2d(x, side, stride=1, padding=side // 2)


def _close(x: Tensor, side: int) -> Tensor:
    return -_dilate(-_dilate(x, side), side)


def _keep_long(lines: Tensor, min_length: float) -> Tensor:
    """Keep the lines [n, 1, H, W] in {0, 1} that extend over more than ``min_length`` pixels."""
    height, width = lines.shape[-2:]
    y = torch.arange(height, device=lines.device, dtype=lines.dtype)[:, None].expand(height, width)
    x = torch.arange(width, device=lines.device, dtype=lines.dtype).expand(height, width)
    far = 2.0 * (height + width)
    # The farthest known position to the right, left, bottom and top; -far outside of lines.
    reach = torch.stack([x, -x, y, -y]).expand(len(lines), -1, -1, -1)
    outside = (lines - 1) * far
    reach = reach * lines + outside
    bound = far * lines + outside
    steps = int(min_length) + 1
    for _ in range(steps):
        reach = torch.minimum(_dilate(reach, 3), bound)
    extent = torch.maximum(reach[:, 0] + reach[:, 1], reach[:, 2] + reach[:, 3])[:, None] + 1
    long = (extent > min_length).to(lines.dtype) * lines
    for _ in range(steps):
        long = _dilate(long, 3) * lines
    return long


def _fill(x: Tensor, removed: Tensor, rings: int) -> Tensor:
    """Fill the pixels of ``removed`` [n, 1, H, W] in {0, 1} from their surroundings."""
    known = 1 - removed
    # The fourth channel is the weight of known pixels.
    filled = torch.cat([x * known, known], dim=1)
    for _ in range(rings):
        near = F.avg_pool2d(filled, 3, stride=1, padding=1)
        mean = near / near[:, 3:].clamp(min=1e-6)
        filled = torch.where(filled[:, 3:] > 0, filled, mean)
    return torch.where(filled[:, 3:] > 0, filled[:, :3], x)


#: Operations by name, on images float [n, 3, S, S] in [0, 255].
CHANGES: dict[str, Callable[..., Tensor]] = {
    "jitter": pixels.jitter,
    "gamma": pixels.gamma,
    "clahe": pixels.clahe,
    "blur": pixels.blur,
    "paint": pixels.paint,
    "hair_removal": remove_hair,
}
