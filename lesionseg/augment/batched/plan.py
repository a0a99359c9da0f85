"""draw_plan(): the random parameters of a pipeline for each image of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg.augment.drawing import DrawnArtefact
from lesionseg.augment.geometry import CoarseElastic, Symmetries, Warp
from lesionseg.augment.hair import HairRemoval
from lesionseg.augment.host import draw_params

Params = dict[str, Any]
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
            for name, arrays in create_changes(transform, list(params.values()), size):
                changes.append((name, _to_tensors({"rows": rows, **arrays})))
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
                params[i] = draw_params(transform, (size, size, 3))
    return draws


def _to_tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Convert integers to int64 and floats to float32; uint8 stays."""
    tensors = {}
    for name, array in arrays.items():
        if array.dtype != np.uint8:
            is_integer = np.issubdtype(array.dtype, np.integer)
            array = array.astype(np.int64 if is_integer else np.float32)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors


# --- geometric transforms: 3 x 3 matrices from output to input pixels (x, y, 1) -------------------


def _symmetry_matrix(name: str, size: int) -> NDArray[np.float64]:
    last = size - 1.0
    x, y, mirrored_x, mirrored_y = (1, 0, 0), (0, 1, 0), (-1, 0, last), (0, -1, last)
    rows = {
        "e": (x, y),
        "h": (mirrored_x, y),
        "v": (x, mirrored_y),
        "r180": (mirrored_x, mirrored_y),
        "r90": (mirrored_y, x),
        "r270": (y, mirrored_x),
        "t": (y, x),
        "hvt": (mirrored_y, mirrored_x),
    }[name]
    return np.array([*rows, (0, 0, 1)], dtype=np.float64)


#: The matrix of each geometric transform, from its parameters and the image size.
MATRICES: dict[type, Callable[[Params, int], NDArray[np.float64]]] = {
    A.HorizontalFlip: lambda params, size: _symmetry_matrix("h", size),
    A.VerticalFlip: lambda params, size: _symmetry_matrix("v", size),
    Symmetries: lambda params, size: _symmetry_matrix(params["group_element"], size),
    Warp: lambda params, size: np.linalg.inv(params["matrix"]),
}


# --- changes of the image values -----------------------------------------------------------------

#: Names of operations in ``apply.CHANGES`` and the arrays of their parameters.
Changes = list[tuple[str, dict[str, NDArray[Any]]]]


def _create_jitter(transform: A.ColorJitter, params: Sequence[Params], size: int) -> Changes:
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


def _create_gamma(transform: A.RandomGamma, params: Sequence[Params], size: int) -> Changes:
    return [("gamma", {"gamma": np.array([p["gamma"] for p in params])})]


def _create_clahe(transform: A.CLAHE, params: Sequence[Params], size: int) -> Changes:
    return [("clahe", {"clip": np.array([p["clip_limit"] for p in params])})]


def _create_blur(transform: A.GaussianBlur, params: Sequence[Params], size: int) -> Changes:
    kernels = [p["kernel"].ravel() for p in params]
    longest = max(len(k) for k in kernels)
    padded = [np.pad(k, (longest - len(k)) // 2) for k in kernels]
    return [("blur", {"kernel": np.stack(padded)})]


def _create_hair_removal(transform: HairRemoval, params: Sequence[Params], size: int) -> Changes:
    return [("hair_removal", {"threshold": np.array([p["threshold"] for p in params])})]


def _create_layers(transform: DrawnArtefact, params: Sequence[Params], size: int) -> Changes:
    images = [list(transform.layers(**p | {"shape": (size, size)})) for p in params]
    # A transform has the same number of layers for every image.
    return [
        (
            "paint",
            {
                "layer": np.stack([layer for layer, _ in layers]),
                "colour": np.stack([np.asarray(colour) for _, colour in layers]).astype(float),
            },
        )
        for layers in zip(*images, strict=True)
    ]


ChangeFactory = Callable[[Any, Sequence[Params], int], Changes]

_CHANGE_FACTORIES: dict[type, ChangeFactory] = {
    A.ColorJitter: _create_jitter,
    A.RandomGamma: _create_gamma,
    A.CLAHE: _create_clahe,
    A.GaussianBlur: _create_blur,
    HairRemoval: _create_hair_removal,
}


def _change_factory(kind: type) -> ChangeFactory | None:
    return _CHANGE_FACTORIES.get(kind) or (
        _create_layers if issubclass(kind, DrawnArtefact) else None
    )
