"""Application of a plan to a batch, without reading values back from the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lesionseg.augment.batched import pixels
from lesionseg.augment.batched.hair_removal import remove_hair
from lesionseg.augment.batched.plan import BatchPlan

#: Operations by name, on images float [n, 3, S, S] in [0, 255].
CHANGES: dict[str, Callable[..., Tensor]] = {
    "jitter": pixels.jitter,
    "gamma": pixels.gamma,
    "clahe": pixels.clahe,
    "blur": pixels.blur,
    "paint": pixels.paint,
    "hair_removal": remove_hair,
}


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
