"""draw(): what a pipeline's transforms would do to each image of a batch, as numbers."""

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
    """What is to be done to N images of side S.

    matrix: float [N, 2, 3]; from where, in pixels (x, y, 1), each pixel is read, or [0, 2, 3]
        where nothing moves. bend: float [N, 3, 3, 2]; the coarse grid of shifts in pixels that
        is added to a pixel's place before, or [0, 3, 3, 2] where nothing bends. changes: of the
        image alone, in order: the name of each and its tensors; ``rows`` [n] int64 says to which
        of the images, the others have n rows.
    """

    matrix: Tensor
    bend: Tensor
    changes: list[Change]


def is_batchable(pipeline: A.Compose) -> bool:
    """Whether every transform of a pipeline can be carried out on batches."""
    kinds = [type(t) for t in pipeline.transforms]
    if not all(k in MOVES or k is CoarseElastic or _change(k) for k in kinds):
        return False
    # In the order that one resampling can stand for: moved, bent, then changed in colour.
    order = [0 if k in MOVES else 1 if k is CoarseElastic else 2 for k in kinds]
    return order == sorted(order) and kinds.count(CoarseElastic) <= 1


def draw_plan(pipeline: A.Compose, n: int, size: int) -> BatchPlan:
    """The plan for n images of that side: the very draws of n calls of the pipeline.

    ``is_batchable`` must say so of the pipeline, and it is to be seeded beforehand by ``reseed``.
    """
    taken: list[list[tuple[int, Params]]] = [[] for _ in pipeline.transforms]
    shape = (size, size, 3)
    for i in range(n):
        pipeline.py_random.random()  # whether the pipeline is run at all: it always is
        for transform, takers in zip(pipeline.transforms, taken, strict=True):
            if transform.should_apply():
                takers.append((i, _drawn(transform, shape)))
    matrices, bends, changes = np.stack([np.eye(3)] * n), np.zeros((n, 3, 3, 2)), []
    for transform, takers in zip(pipeline.transforms, taken, strict=True):
        kind = type(transform)
        for i, params in takers:
            if kind in MOVES:
                matrices[i] = matrices[i] @ MOVES[kind](params, size)
            elif kind is CoarseElastic:
                bends[i] = params["shifts"]
        change = _change(kind)
        if takers and change is not None:
            rows = np.array([i for i, _ in takers])
            changes += change(transform, rows, [p for _, p in takers], size)
    moved = (matrices != np.eye(3)).any() or bends.any()
    return BatchPlan(
        torch.from_numpy(matrices[: n * moved, :2].astype(np.float32)),
        torch.from_numpy(bends[: n * bool(bends.any())].astype(np.float32)),
        [(name, _tensors(values)) for name, values in changes],
    )


def _drawn(transform: A.BasicTransform, shape: tuple[int, int, int]) -> Params:
    """What the transform draws for one image; the map of all its pixels is not needed."""
    if isinstance(transform, CoarseElastic):
        return {"shifts": transform.shifts(*shape[:2])}
    return draw_params(transform, shape)


def _tensors(values: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Whole numbers as int64, layers as they are, all else as float32."""
    found = {}
    for name, value in values.items():
        if value.dtype != np.uint8:
            kind = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32
            value = value.astype(kind)
        found[name] = torch.from_numpy(np.ascontiguousarray(value))
    return found


# --- changes of place: 3 x 3, from the place of a pixel to where it is read, both (x, y, 1) -------


def _symmetry(name: str, size: int) -> NDArray[np.float64]:
    last = size - 1.0
    same, swapped, mirrored = (1.0, 0.0), (0.0, 1.0), -1.0
    rows = {
        "e": [(*same, 0.0), (*swapped, 0.0)],
        "h": [(mirrored, 0.0, last), (*swapped, 0.0)],
        "v": [(*same, 0.0), (0.0, mirrored, last)],
        "r180": [(mirrored, 0.0, last), (0.0, mirrored, last)],
        "r90": [(0.0, mirrored, last), (*same, 0.0)],
        "r270": [(*swapped, 0.0), (mirrored, 0.0, last)],
        "t": [(*swapped, 0.0), (*same, 0.0)],
        "hvt": [(0.0, mirrored, last), (mirrored, 0.0, last)],
    }[name]
    return np.array([*rows, (0.0, 0.0, 1.0)])


#: Of each transform that moves pixels: its parameters and the side to the matrix.
MOVES: dict[type, Callable[[Params, int], NDArray[np.float64]]] = {
    A.HorizontalFlip: lambda params, size: _symmetry("h", size),
    A.VerticalFlip: lambda params, size: _symmetry("v", size),
    Symmetries: lambda params, size: _symmetry(params["group_element"], size),
    Warp: lambda params, size: np.linalg.inv(params["matrix"]),
}


# --- changes of the image alone ------------------------------------------------------------------

Rows = NDArray[np.int64]
Named = list[tuple[str, dict[str, NDArray[Any]]]]


def _jitter(transform: A.ColorJitter, rows: Rows, params: Sequence[Params], size: int) -> Named:
    """Four changes after each other, in an order of each image's own.

    Brightness, contrast and saturation are one formula, a x + b grey + c mean of grey, with
    (a, b, c) for each; only hue is another. So that all images turn their hues at once, there is
    room for three before it and three after: (1, 0, 0) changes nothing.
    """
    places = np.tile([1.0, 0.0, 0.0], (len(rows), 6, 1))
    hues = np.zeros(len(rows))
    for k, values in enumerate(params):
        order = list(values["order"])
        hues[k] = values["hue"]
        hued = order.index(3)
        for place, what in enumerate(order):
            if what != 3:
                factor = values[("brightness", "contrast", "saturation")[what]]
                own = places[k, place + 3 - hued if place < hued else place + 2 - hued]
                own[0] = factor
                own[(0, 2, 1)[what]] += (0.0, 1 - factor, 1 - factor)[what]
    return [
        (
            "jitter",
            {"rows": rows, "before": places[:, :3], "shift": hues, "after": places[:, 3:]},
        )
    ]


def _gamma(transform: A.RandomGamma, rows: Rows, params: Sequence[Params], size: int) -> Named:
    return [("gamma", {"rows": rows, "gamma": np.array([p["gamma"] for p in params])})]


def _clahe(transform: A.CLAHE, rows: Rows, params: Sequence[Params], size: int) -> Named:
    return [("clahe", {"rows": rows, "clip": np.array([p["clip_limit"] for p in params])})]


def _blur(transform: A.GaussianBlur, rows: Rows, params: Sequence[Params], size: int) -> Named:
    kernels = [p["kernel"].ravel() for p in params]
    longest = max(len(k) for k in kernels)
    padded = [np.pad(k, (longest - len(k)) // 2) for k in kernels]
    return [("blur", {"rows": rows, "kernel": np.stack(padded)})]


def _removal(transform: HairRemoval, rows: Rows, params: Sequence[Params], size: int) -> Named:
    return [("unhair", {"rows": rows, "threshold": np.array([p["threshold"] for p in params])})]


def _layers(transform: DrawnArtefact, rows: Rows, params: Sequence[Params], size: int) -> Named:
    each = [list(transform.layers(**p | {"shape": (size, size)})) for p in params]
    # Every transform has as many layers for each image.
    return [
        (
            "paint",
            {
                "rows": rows,
                "layer": np.stack([on for on, _ in layer]),
                "colour": np.stack([np.asarray(colour) for _, colour in layer]).astype(float),
            },
        )
        for layer in zip(*each, strict=True)
    ]


Maker = Callable[[Any, Rows, Sequence[Params], int], Named]

CHANGES: dict[type, Maker] = {
    A.ColorJitter: _jitter,
    A.RandomGamma: _gamma,
    A.CLAHE: _clahe,
    A.GaussianBlur: _blur,
    HairRemoval: _removal,
}


def _change(kind: type) -> Maker | None:
    return CHANGES.get(kind) or (_layers if issubclass(kind, DrawnArtefact) else None)
