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
from itertools import islice
from typing import NamedTuple, TypeVar

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lesionseg.data.duplicates.alignment import FINE, SIDE, Floats, likeness
from lesionseg.data.image_io import Pixels

#: Views of a picture: each of these central parts in each of the 8 ways to lay a square down.
ZOOMS, WAYS = (1.0, 0.9), 8
#: Bits of 64 that the hashes of two copies may differ in.
RADIUS = 12
#: What the coarse structure of two copies correlates by at least.
COARSE = 0.85
#: Grey levels: a picture of a smaller standard deviation shows nothing that could be compared.
FLAT = 3.0
_COARSE_SIDE = 16
#: Rows of the table of all pairs that are compared at once; pairs whose coarse structure is; and
#: those that are laid upon each other before it is asked again which are linked by now.
_ROWS, _AT_ONCE, _BATCH = 16, 8192, 64

Positions = NDArray[np.intp]
Square = TypeVar("Square", Pixels, Floats)


class Look(NamedTuple):
    """What a picture is known by: 5 KB, whatever its size.

    digest: equal for equal pixels. thumb: uint8 [SIDE, SIDE], grey. hashes: uint64 [views].
    """

    digest: str
    thumb: Pixels
    hashes: NDArray[np.uint64]

    @property
    def is_flat(self) -> bool:
        """Whether it shows nothing that could be compared."""
        return float(self.thumb.std()) < FLAT


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
    """Pairs of copies, in order, that link all copies of each picture with one another.

    Pictures that are linked, directly or through others, are not compared any more, so that n
    copies of one picture cost about n comparisons and give about n pairs. Of equal pictures each
    is paired with the first one only. Pictures without structure (FLAT) are copies only where
    their pixels are equal. The same looks give the same pairs, however many threads there are.
    on_progress: how many pictures were compared with those after them, of how many.
    Takes about 2 KB of memory a picture beside the looks, and 10 KB where all of them are copies.
    """
    twins, fresh = _equal(looks)
    judged = [i for i in fresh if not looks[i].is_flat]
    thumbs = [looks[i].thumb for i in judged]
    home = np.arange(len(judged))  # of each picture the first one that it is linked with

    def confirm(pair: _Candidate) -> float:
        return likeness(thumbs[pair.plain], _view(thumbs[pair.viewed], pair.view))

    candidates = _candidates([looks[i].hashes for i in judged], thumbs, home, on_progress)
    todo = (pair for pair in candidates if home[pair.plain] != home[pair.viewed])
    with ThreadPoolExecutor() as pool:  # OpenCV works without the GIL
        while batch := list(islice(todo, _BATCH)):
            for pair, found in zip(batch, pool.map(confirm, batch), strict=True):
                if found >= FINE:
                    first, second = sorted((judged[pair.plain], judged[pair.viewed]))
                    twins.append(Twin(first, second, round(found, 3), exact=False))
                    ends = home[[pair.plain, pair.viewed]]
                    home[home == ends.max()] = ends.min()
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


def _laid(square: Square, way: int) -> Square:
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


class _Candidate(NamedTuple):
    """Two pictures, by their positions, that may be copies: one as it is, one in one of its views.

    alike: what their coarse structure correlates by.
    """

    alike: float
    plain: int
    viewed: int
    view: int


def _candidates(
    hashes: Sequence[NDArray[np.uint64]],
    thumbs: Sequence[Pixels],
    home: Positions,
    on_progress: Callable[[int, int], None],
) -> Iterator[_Candidate]:
    """Pairs whose hashes and coarse structure agree, each in the view in which they do best.

    home: [N], changed while this goes on; pairs that share one are left out.
    """
    if len(thumbs) < 2:
        return
    table = np.array(hashes)
    parts = [np.stack([_coarse(_zoomed(t, zoom)) for t in thumbs]) for zoom in range(len(ZOOMS))]
    for top in range(0, len(thumbs), _ROWS):
        best: dict[tuple[int, int], _Candidate] = {}
        for view in range(table.shape[1]):
            for plain, viewed in _near(table, view, top):
                apart = home[plain] != home[viewed]
                for found in _coarsely_alike(parts, plain[apart], viewed[apart], view):
                    key = (min(found.plain, found.viewed), max(found.plain, found.viewed))
                    if key not in best or best[key].alike < found.alike:
                        best[key] = found
        yield from (found for _, found in sorted(best.items()))
        on_progress(min(top + _ROWS, len(thumbs)), len(thumbs))


def _near(hashes: NDArray[np.uint64], view: int, top: int) -> Iterator[tuple[Positions, Positions]]:
    """Pictures whose hash, as they are, lies within RADIUS of that of others in this view.

    hashes: [N, views]. By positions, those as they are first. One of the two lies in the _ROWS
    from top on and the other after it: from all tops come all pairs, once in either order.
    """
    plain, views = hashes[:, 0], hashes[:, view]
    yield _within(plain, views, top)
    if view >= WAYS:  # the other views undo each other: both orders say the same
        viewed, as_it_is = _within(views, plain, top)
        yield as_it_is, viewed


def _within(a: NDArray[np.uint64], b: NDArray[np.uint64], top: int) -> tuple[Positions, Positions]:
    apart = np.bitwise_count(a[top : top + _ROWS, None] ^ b[None, top:])
    i, j = np.nonzero(apart <= RADIUS)
    later = i < j
    return i[later] + top, j[later] + top


def _coarsely_alike(
    parts: Sequence[Floats], plain: Positions, viewed: Positions, view: int
) -> Iterator[_Candidate]:
    """Those of the pairs whose coarse structure agrees, some of them at once."""
    zoom, way = divmod(view, WAYS)
    for at in range(0, len(plain), _AT_ONCE):
        i, j = plain[at : at + _AT_ONCE], viewed[at : at + _AT_ONCE]
        laid = _laid(parts[zoom][j], way)
        alike = np.einsum("nyx,nyx->n", parts[0][i], laid)
        for k in np.flatnonzero(alike >= COARSE).tolist():
            yield _Candidate(float(alike[k]), int(i[k]), int(j[k]), view)


def _coarse(thumb: Pixels) -> Floats:
    """float32 [16, 16] of mean 0 and length 1: what is left without the slow change of light."""
    size = (_COARSE_SIDE, _COARSE_SIDE)
    small = cv2.resize(thumb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    rest = small - cv2.GaussianBlur(small, (0, 0), 2)
    rest -= rest.mean()
    unit: Floats = rest / max(float(np.linalg.norm(rest)), 1e-6)
    return unit
