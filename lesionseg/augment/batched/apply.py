"""carry_out(): does what a plan says to a batch, with torch alone, where the batch lies.

Nothing here reads a value back, so that a GPU is never waited for; how many images a change is
for is known from the plan's shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lesionseg.augment.batched import pixels
from lesionseg.augment.batched.hair_removal import remove_hair
from lesionseg.augment.batched.plan import BatchPlan

#: By the name in a plan: images float [n, 3, S, S] in [0, 255] and their values to images.
CHANGES: dict[str, Callable[..., Tensor]] = {
    "jitter": pixels.jitter,
    "gamma": pixels.gamma,
    "clahe": pixels.clahe,
    "blur": pixels.blur,
    "paint": pixels.paint,
    "unhair": remove_hair,
}


@torch.no_grad()
def apply_plan(plan: BatchPlan, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The images and masks as the plan would have them; the arguments are left alone.

    images: uint8 [N, S, S, 3]; given back as float in [0, 255] of the same shape.
    masks: uint8 [N, S, S] in {0, 1}; given back alike.
    All on one device, the plan too.
    """
    # The permuted view is what torch calls channels last: no copy but that to floats.
    x, y = images.permute(0, 3, 1, 2).float(), masks[:, None]
    if len(plan.matrix):
        grid = _grid(plan, x.shape[-1])
        x = F.grid_sample(x, grid, "bilinear", "reflection", align_corners=True)
        x = x.contiguous(memory_format=torch.channels_last)
        y = F.grid_sample(y.float(), grid, "nearest", "reflection", align_corners=True)
    for name, values in plan.changes:
        rows = values["rows"]
        others = {k: v for k, v in values.items() if k != "rows"}
        if len(rows) == len(x):  # rows are in order: all of them
            x = CHANGES[name](x, **others)
        else:
            x.index_copy_(0, rows, CHANGES[name](x[rows], **others))
    return x.permute(0, 2, 3, 1), y[:, 0].to(masks.dtype)


def _grid(plan: BatchPlan, size: int) -> Tensor:
    """[N, S, S, 2]: from where each pixel is read; -1 and 1 are the outer pixels' centres."""
    line = torch.arange(size, dtype=torch.float32, device=plan.matrix.device)
    x, y = line.expand(size, size), line[:, None].expand(size, size)
    if len(plan.bend):
        coarse = plan.bend.permute(0, 3, 1, 2)
        fine = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        x, y = x + fine[:, 0], y + fine[:, 1]
    # Written out: as a product of matrices a GPU would round places to ten bits (TF32).
    a, b, to_x, c, d, to_y = plan.matrix.flatten(1)[:, :, None, None].unbind(dim=1)
    read = torch.stack([a * x + b * y + to_x, c * x + d * y + to_y], dim=-1)
    return read * (2 / (size - 1)) - 1
