"""Plans: the random parameters of a pipeline for each image of a batch.

A plan consists of about forty small tensors. Sent separately by a loader process, each would be a
file of shared memory and a copy to the device of its own, so that ``pack_plan`` joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import torch
from albumentations.augmentations.geometric import functional
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lesionseg.augment.dermoscopy import DrawnArtefact, HairRemoval, Params
from lesionseg.augment.geometry import CoarseElastic

Change = tuple[str, dict[str, Tensor]]


class BatchPlan(NamedTuple):
    """Parameters of the augmentation of N images of S x S pixels.

    Attributes:
        matrix: float [N, 2, 3]; the position, in pixels (x, y, 1), from which each pixel is read.
            [0, 2, 3] if no pixel moves.
        bend: float [N, 3, 3, 2]; grid of shifts in pixels, added to a pixel's position before
            ``matrix`` is applied. [0, 3, 3, 2] if there are none.
        changes: changes of the image values, in order: name and tensors. ``rows``, int64 [n], are
            the images to change; the other tensors have n rows.
    """

    matrix: Tensor
    bend: Tensor
    changes: list[Change]


def is_batchable(pipeline: A.Compose) -> bool:
    """Whether ``draw_plan`` supports the pipeline.

    All its transforms must be known, in an order that one resampling can represent: geometric,
    elastic, then changes of the image values.
    """
    kinds = [type(t) for t in pipeline.transforms]
    if not all(k in MATRICES or k is CoarseElastic or _change_factory(k) for k in kinds):
        return False
    order = [0 if k in MATRICES else 1 if k is CoarseElastic else 2 for k in kinds]
    return order == sorted(order) and kinds.count(CoarseElastic) <= 1


def draw_plan(pipeline: A.Compose, n: int, size: int) -> BatchPlan:
    """Draw the plan of a batch, with the same random numbers as n calls of the pipeline.

    Args:
        pipeline: a pipeline for which ``is_batchable`` is true, seeded by ``reseed``.
        n: number of images.
        size: their height and width in pixels.
    """
    draws = _draw_params(pipeline, n, size)
    matrices, bends, changes = np.stack([np.eye(3)] * n), np.zeros((n, 3, 3, 2)), []
    for transform, params in zip(pipeline.transforms, draws, strict=True):
        kind = type(transform)
        if kind in MATRICES:
            for i, values in params.items():
                matrices[i] = matrices[i] @ MATRICES[kind](values, size)
        elif kind is CoarseElastic:
            for i, values in params.items():
                bends[i] = values["shifts"]
        elif params and (create_changes := _change_factory(kind)):
            rows = np.array(list(params))
            for name, arrays in create_changes(list(params.values())):
                tensors = {k: _to_tensor(v) for k, v in {"rows": rows, **arrays}.items()}
                changes.append((name, tensors))
    has_bends = bool(bends.any())
    has_moves = has_bends or bool((matrices != np.eye(3)).any())
    return BatchPlan(
        torch.from_numpy(matrices[: n * has_moves, :2].astype(np.float32)),
        torch.from_numpy(bends[: n * has_bends].astype(np.float32)),
        changes,
    )


def _draw_params(pipeline: A.Compose, n: int, size: int) -> list[dict[int, Params]]:
    """Draw the parameters of each transform by image, image after image as on the host."""
    draws: list[dict[int, Params]] = [{} for _ in pipeline.transforms]
    for i in range(n):
        pipeline.py_random.random()  # drawn by Compose for its own probability, which is 1
        for transform, params in zip(pipeline.transforms, draws, strict=True):
            if not transform.should_apply():
                continue
            if isinstance(transform, CoarseElastic):
                params[i] = {"shifts": transform.draw_shifts(size, size)}
            else:
                drawn = {**transform.get_params(), "shape": (size, size, 3)}
                params[i] = drawn | transform.get_params_dependent_on_data(drawn, {})
    return draws


def _to_tensor(array: NDArray[Any]) -> Tensor:
    """Convert floats to float32; int64 and uint8 stay."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float() if tensor.is_floating_point() else tensor


# --- geometric transforms: 3 x 3 matrices from output to input pixels (x, y, 1) -------------------


def _symmetry_matrix(name: str, size: int) -> NDArray[np.float64]:
    corners = np.array([[[0, 1], [0, 1]], [[0, 0], [1, 1]]], dtype=np.float64)
    read_x, read_y = (functional.d4(corner, name) for corner in corners)
    rows = [(c[0, 1] - c[0, 0], c[1, 0] - c[0, 0], c[0, 0] * (size - 1)) for c in (read_x, read_y)]
    return np.array([*rows, (0, 0, 1)], dtype=np.float64)


#: The matrix of each geometric transform, from its parameters and the image size.
MATRICES: dict[type, Callable[[Params, int], NDArray[np.float64]]] = {
    A.HorizontalFlip: lambda params, size: _symmetry_matrix("h", size),
    A.VerticalFlip: lambda params, size: _symmetry_matrix("v", size),
    A.D4: lambda params, size: _symmetry_matrix(params["group_element"], size),
    A.Affine: lambda params, size: np.linalg.inv(params["matrix"]),
}


# --- changes of the image values -----------------------------------------------------------------

#: Names of operations in ``apply.CHANGES`` and the arrays of their parameters.
Changes = list[tuple[str, dict[str, NDArray[Any]]]]
ChangeFactory = Callable[[Sequence[Params]], Changes]


def _create_jitter(params: Sequence[Params]) -> Changes:
    """Represent brightness, contrast, saturation and hue, whose order differs between images.

    Brightness, contrast and saturation have the form a x + b grey + c mean(grey). So that the hue
    of all images is shifted at once, there are three such changes before it and three after it;
    the unused ones are (1, 0, 0).
    """
    coefficients = np.tile([1.0, 0.0, 0.0], (len(params), 6, 1))
    for image, values in zip(coefficients, params, strict=True):
        order = list(values["order"])
        hue_at = order.index(_HUE)
        for place, kind in enumerate(order):
            if kind == _HUE:
                continue
            # The last of the three before the hue shift, or the first of those after it.
            slot = place + 3 - hue_at if place < hue_at else place + 2 - hue_at
            name, grey_term = _BLENDS[kind]
            image[slot, 0] = values[name]
            if grey_term:
                image[slot, grey_term] = 1 - values[name]
    hues = np.array([values["hue"] for values in params], dtype=np.float64)
    return [
        ("jitter", {"before": coefficients[:, :3], "shift": hues, "after": coefficients[:, 3:]})
    ]


#: Changes by albumentations' number: parameter, and the coefficient that gets 1 - its value.
_BLENDS = {0: ("brightness", 0), 1: ("contrast", 2), 2: ("saturation", 1)}
_HUE = 3


def _create_blur(params: Sequence[Params]) -> Changes:
    kernels = [p["kernel"].ravel() for p in params]
    longest = max(len(k) for k in kernels)
    return [("blur", {"kernel": np.stack([np.pad(k, (longest - len(k)) // 2) for k in kernels])})]


def _create_layers(params: Sequence[Params]) -> Changes:
    changes: Changes = []
    for layers in zip(*(p["layers"] for p in params), strict=True):
        images, colours = (np.array(values) for values in zip(*layers, strict=True))
        changes.append(("paint", {"layer": images, "colour": colours.astype(float)}))
    return changes


def _create_scalar(name: str, tensor: str, key: str) -> ChangeFactory:
    return lambda params: [(name, {tensor: np.array([p[key] for p in params])})]


_CHANGE_FACTORIES: dict[type, ChangeFactory] = {
    A.ColorJitter: _create_jitter,
    A.RandomGamma: _create_scalar("gamma", "gamma", "gamma"),
    A.CLAHE: _create_scalar("clahe", "clip", "clip_limit"),
    A.GaussianBlur: _create_blur,
    HairRemoval: _create_scalar("hair_removal", "threshold", "threshold"),
}


def _change_factory(kind: type) -> ChangeFactory | None:
    default = _create_layers if issubclass(kind, DrawnArtefact) else None
    return _CHANGE_FACTORIES.get(kind, default)


# --- packing into one block of memory ------------------------------------------------------------

#: Alignment of each tensor in bytes: the size of the largest dtype in a plan.
ALIGNMENT = 8


@dataclass(frozen=True)
class Layout:
    """Dtypes and shapes of rows, matrix, bend and changes; names of the changes' tensors."""

    tensors: list[tuple[torch.dtype, torch.Size]]
    changes: list[tuple[str, list[str]]]


class PackedPlan(NamedTuple):
    """The rows of a batch and its plan: bytes, uint8 [B], and their layout."""

    content: Tensor
    layout: Layout


def pack_plan(rows: Tensor, plan: BatchPlan) -> PackedPlan:
    """Pack the rows of a batch, int64 [N], and its plan, both on the host."""
    tensors = [rows, plan.matrix, plan.bend]
    for _, values in plan.changes:
        tensors += values.values()
    changes = [(name, list(values)) for name, values in plan.changes]
    layout = Layout([(tensor.dtype, tensor.shape) for tensor in tensors], changes)
    parts = [tensor.flatten().view(torch.uint8) for tensor in tensors]
    padded = [F.pad(part, (0, -len(part) % ALIGNMENT)) for part in parts]
    return PackedPlan(torch.cat(padded), layout)


def unpack_plan(packed: PackedPlan) -> tuple[Tensor, BatchPlan]:
    """Return the rows and the plan, as views of the packed content on its device."""
    tensors, start = [], 0
    for dtype, shape in packed.layout.tensors:
        size = dtype.itemsize * shape.numel()
        tensors.append(packed.content[start : start + size].view(dtype).view(shape))
        start += size + -size % ALIGNMENT
    rows, matrix, bend, *others = tensors
    remaining = iter(others)
    changes = [(name, {k: next(remaining) for k in keys}) for name, keys in packed.layout.changes]
    return rows, BatchPlan(matrix, bend, changes)
