"""Which pictures are copies of one another: resized, recompressed, turned, mirrored, cropped.

Dermoscopy looks alike, a dark blob on skin, so a hash alone either misses copies or takes strangers
for them. Three steps, each for what the one before lets through: a perceptual hash (of the library
ImageHash) of every picture and of its views; the correlation of coarse structure; and at last the
correlation of fine structure (hairs, pigment, edges), after the two were laid upon each other. The
numbers below were chosen on real dermoscopy (docs/data.md; ``python -m bench.duplicates``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionseg.data.likeness import FINE, SIDE, Floats, likeness
from lesionseg.data.pictures import Pixels

#: Views of a picture: each of these central parts in each of the 8 ways to lay a square down.
ZOOMS, WAYS = (1.0, 0.9), 8
#: Bits of 64 that the hashes of two copies may differ in.
RADIUS = 12
#: What the coarse structure of two copies correlates by at least.
COARSE = 0.85
#: Grey levels: a picture of a smaller standard deviation shows nothing that could be compared.
FLAT = 3.0
_COARSE_SIDE = 16
#: Rows of the table of all pairs that are compared at once.
_ROWS = 16


class Look(NamedTuple):
    """What a picture is known by: 5 KB, whatever its size.

    digest: equal for equal pixels. thumb: uint8 [SIDE, SIDE], grey. hashes: uint64 [views].
    """

    digest: str
    thumb: Pixels
    hashes: NDArray[np.uint64]


@dataclass(frozen=True, order=True)
class Twin:
    """Two pictures that are copies, by their positions; first < second.

    likeness: how well their fine structure agrees, 1 for equal pixels. exact: whether they are.
    """

    first: int
    second: int
    likeness: float
    exact: bool


def look(image: Image.Image, digest: str) -> Look:
    """What an RGB image of any size is known by."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    thumb = np.asarray(small)
    # The hash looks at 32 x 32 pixels; laid down eight ways, they are the same.
    parts = [_shrunk(_zoomed(thumb, zoom)) for zoom in range(len(ZOOMS))]
    views = [_laid(part, way) for part in parts for way in range(WAYS)]
    return Look(digest, thumb, np.array([_hash(view) for view in views]))


def find_twins(
    looks: Sequence[Look], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Twin]:
    """All pairs of copies, in order. Of equal pictures each is paired with the first one only.

    Pictures without structure (FLAT) are copies only where their pixels are equal. Takes about
    7 KB of memory a picture beside the looks themselves.
    """
    twins, fresh = _equal(looks)
    judged = [i for i in fresh if looks[i].thumb.std() >= FLAT]
    hashes = np.array([looks[i].hashes for i in judged])
    pairs = _candidates(hashes, [looks[i].thumb for i in judged]) if len(judged) > 1 else []

    def confirm(pair: tuple[int, int, int]) -> float:
        first, second, view = pair
        other = _view(looks[judged[second]].thumb, view)
        return likeness(looks[judged[first]].thumb, other)

    with ThreadPoolExecutor() as pool:  # OpenCV works without the GIL
        for done, (pair, found) in enumerate(zip(pairs, pool.map(confirm, pairs), strict=True), 1):
            if found >= FINE:
                first, second = sorted((judged[pair[0]], judged[pair[1]]))
                twins.append(Twin(first, second, round(found, 3), exact=False))
            on_progress(done, len(pairs))
    return sorted(twins)


def clusters(n: int, twins: Sequence[Twin]) -> list[list[int]]:
    """The positions of 0 to n - 1 that twins link, directly or through others, in order."""
    if not twins:
        return []
    ends = np.array([(t.first, t.second) for t in twins]).T
    links = coo_array((np.ones(len(twins)), (ends[0], ends[1])), shape=(n, n))
    _, labels = connected_components(links, directed=False)
    found: dict[int, list[int]] = {}
    for i in np.unique(ends).tolist():
        found.setdefault(int(labels[i]), []).append(i)
    return sorted(found.values())


def _view(thumb: Pixels, view: int) -> Pixels:
    return _laid(_zoomed(thumb, view // WAYS), view % WAYS)


def _zoomed(thumb: Pixels, zoom: int) -> Pixels:
    if ZOOMS[zoom] == 1:
        return thumb
    rim = SIDE * (1 - ZOOMS[zoom]) / 2
    box = (rim, rim, SIDE - rim, SIDE - rim)
    part = Image.fromarray(thumb).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    return np.asarray(part)


def _shrunk(thumb: Pixels) -> Pixels:
    small = Image.fromarray(thumb).resize((32, 32), Image.Resampling.LANCZOS)
    return np.asarray(small)


def _laid(square: NDArray[np.generic], way: int) -> Pixels:
    """The square [..., S, S] turned by 90 degrees ``way % 4`` times, from 4 on mirrored first."""
    mirrored = square[..., ::-1] if way >= 4 else square
    return np.ascontiguousarray(np.rot90(mirrored, way % 4, axes=(-2, -1)))


def _hash(view: Pixels) -> np.uint64:
    bits = imagehash.phash(Image.fromarray(view)).hash
    packed: np.uint64 = np.packbits(bits.reshape(-1)).view(np.uint64)[0]
    return packed


def _equal(looks: Sequence[Look]) -> tuple[list[Twin], list[int]]:
    """Twins of equal pixels, and the first picture of each kind."""
    first: dict[str, int] = {}
    twins = []
    for i, each in enumerate(looks):
        home = first.setdefault(each.digest, i)
        if home != i:
            twins.append(Twin(home, i, 1.0, exact=True))
    return twins, list(first.values())


def _candidates(hashes: NDArray[np.uint64], thumbs: Sequence[Pixels]) -> list[tuple[int, int, int]]:
    """Pairs whose hashes and coarse structure agree, each with the second one's view of that."""
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for zoom in range(len(ZOOMS)):
        coarse = np.stack([_coarse(thumb) for thumb in thumbs])
        parts = (
            coarse
            if ZOOMS[zoom] == 1
            else np.stack([_coarse(_zoomed(thumb, zoom)) for thumb in thumbs])
        )
        for way in range(WAYS):
            view = zoom * WAYS + way
            laid = _laid(parts, way).reshape(len(parts), -1)
            plain = coarse.reshape(len(coarse), -1)
            for i, j in _near(hashes[:, 0], hashes[:, view], both_ways=zoom > 0):
                alike = np.einsum("nk,nk->n", plain[i], laid[j])
                for k in np.flatnonzero(alike >= COARSE).tolist():
                    a, b, value = int(i[k]), int(j[k]), float(alike[k])
                    key = (min(a, b), max(a, b))
                    if key not in best or best[key][0] < value:
                        best[key] = (value, a, b, view)
    return [found[1:] for _, found in sorted(best.items())]


def _near(
    plain: NDArray[np.uint64], views: NDArray[np.uint64], *, both_ways: bool
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Positions i and j of hashes within RADIUS, some rows of the table at a time.

    both_ways: whether i > j is to be looked at too, as where views are not each other's inverse.
    """
    for top in range(0, len(plain), _ROWS):
        left = 0 if both_ways else top
        apart = np.bitwise_count(plain[top : top + _ROWS, None] ^ views[None, left:])
        i, j = np.nonzero(apart <= RADIUS)
        i, j = i + top, j + left
        kept = (i != j) if both_ways else (i < j)
        yield i[kept], j[kept]


def _coarse(thumb: Pixels) -> Floats:
    """float32 [16, 16] of mean 0 and length 1: what is left without the slow change of light."""
    size = (_COARSE_SIDE, _COARSE_SIDE)
    small = cv2.resize(thumb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    rest = small - cv2.GaussianBlur(small, (0, 0), 2)
    rest -= rest.mean()
    unit: Floats = rest / max(float(np.linalg.norm(rest)), 1e-6)
    return unit
