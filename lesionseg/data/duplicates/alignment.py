"""How well two thumbnails agree in what is fine, after one was laid upon the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.image_io import Pixels

#: Pixels of a side of the grey thumbnail that a picture is known by.
SIDE = 64
#: What the fine structure of two copies correlates by at least, in most places.
FINE = 0.55
#: How far the scale, shear and turn that lay two copies upon each other may be from none.
WARP = 0.25

#: Pixels of a side of the cells in which fine structure is compared; the grey levels it must vary
#: by there; the share of all cells that must count.
_CELL, _STILL, _ENOUGH = 8, 0.3, 0.4
#: Zooms about the centre that are tried first: copies that are cropped lie between two views.
_STEPS = tuple(
    np.array([[f, 0, rim], [0, f, rim]], np.float32)
    for f in (1.0, 0.98, 0.96, 0.94, 1.02, 1.04, 1.06)
    for rim in [(1 - f) * (SIDE - 1) / 2]
)
#: When the search for the best place ends: soon, and for pairs that agree by _HOPE then, late;
#: those that agree by _SURE are not moved any more.
_STOPS = tuple(
    (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, steps, gain)
    for steps, gain in ((15, 1e-3), (60, 1e-6))
)
_HOPE, _SURE = 0.12, 0.9

Floats = NDArray[np.float32]


def likeness(a: Pixels, b: Pixels) -> float:
    """How well the fine structure of two thumbnails agrees in most places, at most 1.

    If they do not lie upon each other (one is cropped), b is first moved to where it fits best.
    """
    tried = _laid_upon(a, b, _STEPS)
    best, warp = float(tried.max()), _STEPS[int(tried.argmax())]
    for stop in _STOPS:
        if best >= _SURE:
            break
        try:
            _, found = cv2.findTransformECC(
                a, b, warp.copy(), cv2.MOTION_AFFINE, stop, np.ones_like(a), 3
            )
        except cv2.error:  # it does not converge: there is nothing in common
            break
        warp = np.asarray(found, np.float32)
        if np.abs(warp[:, :2] - np.eye(2)).max() > WARP:
            break
        best = max(best, float(_laid_upon(a, b, [warp])[0]))
        if best < _HOPE:
            break
    return best


def _fine(thumb: Pixels) -> Floats:
    grey = thumb.astype(np.float32)
    fine: Floats = grey - cv2.GaussianBlur(grey, (0, 0), 1)
    return fine


def _laid_upon(a: Pixels, b: Pixels, warps: Sequence[Floats]) -> Floats:
    """How well a and b agree where b, moved by each warp, lies upon a; 0 where that is little.

    The median over cells of the correlation of fine structure: two outlines of one shape agree
    well, and yet in few places. Cells that are flat or largely unseen do not count.
    """
    moved = np.stack([_moved(b, warp, cv2.INTER_LINEAR) for warp in warps])
    seen = np.stack([_seen(warp.tobytes()) for warp in warps])
    x = _centred(_cells(_fine(a)[None]), seen)
    y = _centred(_cells(np.stack([_fine(each) for each in moved])), seen)
    spread_x, spread_y = (np.sqrt((each * each).mean(axis=-1)) for each in (x, y))
    counts = (seen.mean(axis=-1) >= 0.5) & (spread_x >= _STILL) & (spread_y >= _STILL)
    together = (x * y).mean(axis=-1) / np.maximum(spread_x * spread_y, _STILL**2)
    return np.array(
        [
            np.median(each[counted]) if counted.mean() >= _ENOUGH else 0
            for each, counted in zip(together, counts, strict=True)
        ],
        dtype=np.float32,
    )


@lru_cache(maxsize=64)  # room for _STEPS, which are asked for again and again
def _seen(warp: bytes) -> Floats:
    """Cells of 1 where something lies after a warp, given as its bytes, and 0 elsewhere."""
    back = np.frombuffer(warp, np.float32).reshape(2, 3)
    there = _moved(np.ones((SIDE, SIDE), np.uint8), back, cv2.INTER_NEAREST)
    # The filter of fine structure must not see the edge of what was moved.
    inner = np.asarray(cv2.erode(there, np.ones((5, 5), np.uint8)), np.float32)
    cells: Floats = _cells(inner[None])[0]
    return cells


def _cells(thumbs: Floats) -> Floats:
    """float32 [N, cells, pixels of a cell] of [N, SIDE, SIDE]."""
    n, side = SIDE // _CELL, _CELL
    rows = thumbs.reshape(-1, n, side, n, side)
    cells: Floats = rows.swapaxes(2, 3).reshape(-1, n * n, side * side)
    return cells


def _centred(cells: Floats, weights: Floats) -> Floats:
    """The cells less their mean, 0 where they weigh nothing."""
    total = np.maximum(weights.sum(axis=-1, keepdims=True), 1)
    mean = (cells * weights).sum(axis=-1, keepdims=True) / total
    centred: Floats = (cells - mean) * weights
    return centred


def _moved(thumb: Pixels, warp: Floats, how: int) -> Pixels:
    moved = cv2.warpAffine(thumb, warp, (SIDE, SIDE), flags=how | cv2.WARP_INVERSE_MAP)
    return np.asarray(moved, np.uint8)
