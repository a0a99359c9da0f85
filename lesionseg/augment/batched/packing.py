"""A plan as one piece of memory, so that it travels as one.

A plan is some forty small tensors. Sent one by one from a loader's process, each would be a file
of shared memory, and each a copy of its own to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lesionseg.augment.batched.plan import BatchPlan

#: Each tensor begins at a multiple of so many bytes, the size of the largest numbers in a plan.
ALIGNED = 8


@dataclass(frozen=True)
class Layout:
    """What lies in a packed plan.

    tensors: kind and shape of each, in order: rows, matrix, bend, those of the changes. changes:
    the name of each change and those of its tensors.
    """

    tensors: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    changes: tuple[tuple[str, tuple[str, ...]], ...]


class PackedPlan(NamedTuple):
    """Which images of a batch, and what is to be done to them: uint8 [bytes], and what they are."""

    content: Tensor
    layout: Layout


def pack_plan(rows: Tensor, plan: BatchPlan) -> PackedPlan:
    """The rows of a batch, int64 [N], and its plan, all on the host."""
    tensors = [rows, plan.matrix, plan.bend]
    for _, values in plan.changes:
        tensors += values.values()
    kinds = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    content = torch.zeros(sum(_padded(tensor.nbytes) for tensor in tensors), dtype=torch.uint8)
    start = 0
    for tensor in tensors:
        content[start : start + tensor.nbytes] = tensor.flatten().view(torch.uint8)
        start += _padded(tensor.nbytes)
    changes = tuple((name, tuple(values)) for name, values in plan.changes)
    return PackedPlan(content, Layout(kinds, changes))


def unpack_plan(packed: PackedPlan) -> tuple[Tensor, BatchPlan]:
    """What was packed, as views of its content, wherever that lies."""
    tensors, start = [], 0
    for kind, shape in packed.layout.tensors:
        size = kind.itemsize * torch.Size(shape).numel()
        tensors.append(packed.content[start : start + size].view(kind).view(shape))
        start += _padded(size)
    rows, matrix, bend, *others = tensors
    left = iter(others)
    changes = [(name, {key: next(left) for key in keys}) for name, keys in packed.layout.changes]
    return rows, BatchPlan(matrix, bend, changes)


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
