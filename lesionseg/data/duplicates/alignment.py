"""Similarity of two thumbnails after one was aligned to the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lesionseg.data.image_io import Pixels

#: Side of the grey thumbnail of an image.
THUMB_PX = 64
#: Two images are near-duplicates from this similarity on.
MIN_SIMILARITY = 0.55
#: Largest deviation of an entry of the affine matrix from the identity.
MAX_WARP = 0.25

#: Side of the cells in which fine structure is compared, the standard deviation (grey levels)
#: from which a cell counts, and the share of cells that must count.
_CELL_PX, _MIN_CELL_STD, _MIN_CELL_SHARE = 8, 0.3, 0.4
#: Zooms about the centre that are tried first; crops lie between two of the hashed views.
_ZOOM_WARPS = tuple(
    np.array([[zoom, 0, margin], [0, zoom, margin]], np.float32)
    for zoom in (1.0, 0.98, 0.96, 0.94, 1.02, 1.04, 1.06)
    for margin in [(1 - zoom) * (THUMB_PX - 1) / 2]
)
#: Iterations and precision of the two rounds of the ECC search.
_ECC_ROUNDS = ((15, 1e-3), (60, 1e-6))
#: Similarity below which the second round is skipped, and from which no search is needed.
_HOPELESS, _CERTAIN = 0.12, 0.9

Floats = NDArray[np.float32]


def aligned_similarity(a: Pixels, b: Pixels) -> float:
    """Return the similarity of two thumbnails, aligning the second to the first if needed.

    The similarity is the median over cells of the correlation of fine structure: two similar
    outlines agree well, but in few cells only.

    Args:
        a: uint8 [THUMB_PX, THUMB_PX].
        b: uint8 [THUMB_PX, THUMB_PX].

    Returns:
        At most 1; near 0 for unrelated images.
    """
    similarities = _similarities(a, b, _ZOOM_WARPS)
    best, warp = float(similarities.max()), _ZOOM_WARPS[int(similarities.argmax())]
    for iterations, epsilon in _ECC_ROUNDS:
        if best >= _CERTAIN:
            break
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, iterations, epsilon)
        try:
            _, refined = cv2.findTransformECC(
                a, b, warp.copy(), cv2.MOTION_AFFINE, criteria, np.ones_like(a), 3
            )
        except cv2.error:  # no convergence: the images have nothing in common
            break
        warp = np.asarray(refined, np.float32)
        if np.abs(warp[:, :2] - np.eye(2)).max() > MAX_WARP:
            break
        best = max(best, float(_similarities(a, b, [warp])[0]))
        if best < _HOPELESS:
            break
    return best


def _similarities(a: Pixels, b: Pixels, warps: Sequence[Floats]) -> Floats:
    """Return the similarity of a to b under each warp; 0 if too few cells count.

    Flat cells and cells that are mostly outside the warped image do not count.
    """
    warped = np.stack([_warp(b, warp, cv2.INTER_LINEAR) for warp in warps])
    weights = np.stack([_valid_cells(warp.tobytes()) for warp in warps])
    x = _center(_split_cells(_high_pass(a)[None]), weights)
    y = _center(_split_cells(np.stack([_high_pass(thumb) for thumb in warped])), weights)
    std_x, std_y = (np.sqrt((cells * cells).mean(axis=-1)) for cells in (x, y))
    counts = (weights.mean(axis=-1) >= 0.5) & (std_x >= _MIN_CELL_STD) & (std_y >= _MIN_CELL_STD)
    correlation = (x * y).mean(axis=-1) / np.maximum(std_x * std_y, _MIN_CELL_STD**2)
    return np.array(
        [
            np.median(values[counted]) if counted.mean() >= _MIN_CELL_SHARE else 0
            for values, counted in zip(correlation, counts, strict=True)
        ],
        dtype=np.float32,
    )


def _high_pass(thumb: Pixels) -> Floats:
    grey = thumb.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 1))


@lru_cache(maxsize=64)  # holds _ZOOM_WARPS, which are used for every pair
def _valid_cells(warp_bytes: bytes) -> Floats:
    """Return cells of 1 where the warped image is defined and 0 elsewhere."""
    warp = np.frombuffer(warp_bytes, np.float32).reshape(2, 3)
    valid = _warp(np.ones((THUMB_PX, THUMB_PX), np.uint8), warp, cv2.INTER_NEAREST)
    # The high-pass filter must not cross the edge of the warped image.
    inner = np.asarray(cv2.erode(valid, np.ones((5, 5), np.uint8)), np.float32)
    return np.asarray(_split_cells(inner[None])[0])


def _split_cells(thumbs: Floats) -> Floats:
    """Reshape [N, THUMB_PX, THUMB_PX] to [N, cells, pixels of a cell]."""
    n = THUMB_PX // _CELL_PX
    rows = thumbs.reshape(-1, n, _CELL_PX, n, _CELL_PX)
    return rows.swapaxes(2, 3).reshape(-1, n * n, _CELL_PX * _CELL_PX)


def _center(cells: Floats, weights: Floats) -> Floats:
    """Subtract the weighted mean of each cell; pixels of weight 0 become 0."""
    total = np.maximum(weights.sum(axis=-1, keepdims=True), 1)
    mean = (cells * weights).sum(axis=-1, keepdims=True) / total
    return np.asarray((cells - mean) * weights)


def _warp(thumb: Pixels, warp: Floats, interpolation: int) -> Pixels:
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(thumb, warp, (THUMB_PX, THUMB_PX), flags=flags), np.uint8)
