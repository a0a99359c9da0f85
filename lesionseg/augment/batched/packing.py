"""Packing of a plan into one block of memory.

A plan consists of about forty small tensors. Sent separately by a loader process, each would be a
file of shared memory and a copy to the device of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lesionseg.augment.batched.plan import BatchPlan

#: Alignment of each tensor in bytes: the size of the largest dtype in a plan.
ALIGNMENT = 8


@dataclass(frozen=True)
class Layout:
    """The contents of a packed plan.

    Attributes:
        tensors: dtype and shape of rows, matrix, bend, and the tensors of the changes.
        changes: the name of each change and the names of its tensors.
    """

    tensors: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    changes: tuple[tuple[str, tuple[str, ...]], ...]


class PackedPlan(NamedTuple):
    """The rows of a batch and its plan: bytes, uint8 [B], and their layout."""

    content: Tensor
    layout: Layout


def pack_plan(rows: Tensor, plan: BatchPlan) -> PackedPlan:
    """Pack the rows of a batch, int64 [N], and its plan, both on the host."""
    tensors = [rows, plan.matrix, plan.bend]
    for _, values in plan.changes:
        tensors += values.values()
    types = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    content = torch.zeros(sum(_padded(tensor.nbytes) for tensor in tensors), dtype=torch.uint8)
    start = 0
    for tensor in tensors:
        content[start : start + tensor.nbytes] = tensor.flatten().view(torch.uint8)
        start += _padded(tensor.nbytes)
    changes = tuple((name, tuple(values)) for name, values in plan.changes)
    return PackedPlan(content, Layout(types, changes))


def unpack_plan(packed: PackedPlan) -> tuple[Tensor, BatchPlan]:
    """Return the rows and the plan, as views of the packed content on its device."""
    tensors, start = [], 0
    for dtype, shape in packed.layout.tensors:
        size = dtype.itemsize * torch.Size(shape).numel()
        tensors.append(packed.content[start : start + size].view(dtype).view(shape))
        start += _padded(size)
    rows, matrix, bend, *others = tensors
    remaining = iter(others)
    changes = [
        (name, {key: next(remaining) for key in keys}) for name, keys in packed.layout.changes
    ]
    return rows, BatchPlan(matrix, bend, changes)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
