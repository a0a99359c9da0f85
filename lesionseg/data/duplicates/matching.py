"""Search for near-duplicates: resized, recompressed, rotated, mirrored or cropped copies.

All dermoscopic images look alike (a dark blob on skin), so a perceptual hash alone misses copies or
matches unrelated images. Three steps filter the pairs: the perceptual hash of each image and of its
views; the correlation of coarse structure; the correlation of fine structure (hairs, pigment,
edges) after alignment. The thresholds were chosen on real dermoscopy (docs/data.md;
``python -m bench.duplicates``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import NamedTuple, TypeVar

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.hierarchy import DisjointSet

from lesionseg.data.cache import Progress
from lesionseg.data.duplicates.alignment import (
    MIN_SIMILARITY,
    THUMB_PX,
    Floats,
    aligned_similarity,
)
from lesionseg.data.image_io import Pixels

#: Views of an image: each of these central crops in each of the 8 symmetries of the square.
ZOOMS, SYMMETRIES = (1.0, 0.9), 8
#: Bits of 64 in which the hashes of two copies may differ.
MAX_HASH_DISTANCE = 12
#: Lowest correlation of the coarse structure of two copies.
MIN_COARSE_CORRELATION = 0.85
#: Standard deviation in grey levels below which an image has no structure to compare.
MIN_CONTRAST = 3.0
#: Side of the coarse structure, and of the input of the perceptual hash.
_COARSE_PX, _HASH_INPUT_PX = 16, 32
#: Rows of the table of all pairs that are hashed at once, pairs whose coarse structure is compared
#: at once, and pairs that are aligned before linked pairs are skipped again.
_ROWS, _COARSE_BATCH, _ALIGN_BATCH = 16, 8192, 64

Positions = NDArray[np.intp]
Square = TypeVar("Square", Pixels, Floats)


class Fingerprint(NamedTuple):
    """Data by which images are compared: 5 KB per image."""

    digest: str  # equal for equal pixels
    thumb: Pixels  # uint8 [THUMB_PX, THUMB_PX], grey
    hashes: NDArray[np.uint64]  # [views]

    @property
    def is_flat(self) -> bool:
        """Whether the image has no structure to compare."""
        return float(self.thumb.std()) < MIN_CONTRAST


@dataclass(frozen=True, order=True)
class DuplicatePair:
    """Two near-duplicates by their positions, first < second."""

    first: int
    second: int
    similarity: float  # of the fine structure, 1 for equal pixels
    exact: bool  # whether all pixels are equal


def thumbnail(image: Image.Image) -> Pixels:
    """Return a grey thumbnail, uint8 [THUMB_PX, THUMB_PX], of an image of any size."""
    size = (THUMB_PX, THUMB_PX)
    small = image.convert("L").resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small)


def fingerprint_image(image: Image.Image, digest: str) -> Fingerprint:
    """Compute the fingerprint of an image of any size, or of its thumbnail."""
    thumb, hash_size = thumbnail(image), (_HASH_INPUT_PX, _HASH_INPUT_PX)
    hashes = []
    for zoom in ZOOMS:
        # The symmetries of the square commute with the resizing for the hash.
        crop = Image.fromarray(_zoom(thumb, zoom)).resize(hash_size, Image.Resampling.LANCZOS)
        for symmetry in range(SYMMETRIES):
            view = Image.fromarray(_transform(np.asarray(crop), symmetry))
            hashes.append(np.packbits(imagehash.phash(view).hash.reshape(-1)).view(np.uint64)[0])
    return Fingerprint(digest, thumb, np.array(hashes))


def find_duplicate_pairs(
    fingerprints: Sequence[Fingerprint], on_progress: Progress = lambda done, total: None
) -> list[DuplicatePair]:
    """Return pairs that link all near-duplicates of each image with one another, sorted.

    Images that are linked, directly or through others, are not compared again: n copies of one
    image take about n comparisons and give about n pairs. Of equal images each is paired with the
    first only. Images without structure match only if all pixels are equal. The result does not
    depend on the number of threads. Memory: about 2 KB per image besides the fingerprints, 10 KB
    if all images are copies. Progress: the number of images compared with all later ones.
    """
    pairs: list[DuplicatePair] = []
    first_by_digest: dict[str, int] = {}
    for i, fingerprint in enumerate(fingerprints):
        first = first_by_digest.setdefault(fingerprint.digest, i)
        if first != i:
            pairs.append(DuplicatePair(first, i, 1.0, exact=True))
    compared = [i for i in first_by_digest.values() if not fingerprints[i].is_flat]
    images = [fingerprints[i] for i in compared]
    cluster = np.arange(len(compared))  # for each image the first that it is linked with

    def similarity(candidate: _Candidate) -> float:
        zoom, symmetry = divmod(candidate.view, SYMMETRIES)
        view = _transform(_zoom(images[candidate.viewed].thumb, ZOOMS[zoom]), symmetry)
        return aligned_similarity(images[candidate.plain].thumb, view)

    candidates = (
        candidate
        for candidate in _find_candidates(images, cluster, on_progress)
        if cluster[candidate.plain] != cluster[candidate.viewed]
    )
    with ThreadPoolExecutor() as pool:  # OpenCV releases the GIL
        while batch := list(islice(candidates, _ALIGN_BATCH)):
            for candidate, value in zip(batch, pool.map(similarity, batch), strict=True):
                if value >= MIN_SIMILARITY:
                    first, second = sorted((compared[candidate.plain], compared[candidate.viewed]))
                    pairs.append(DuplicatePair(first, second, round(value, 3), exact=False))
                    ends = cluster[[candidate.plain, candidate.viewed]]
                    cluster[cluster == ends.max()] = ends.min()
    return sorted(pairs)


def cluster_pairs(pairs: Sequence[DuplicatePair]) -> list[list[DuplicatePair]]:
    """Return the pairs of each cluster of images that are linked, directly or through others."""
    sets = DisjointSet(position for pair in pairs for position in (pair.first, pair.second))
    for pair in pairs:
        sets.merge(pair.first, pair.second)
    clusters: dict[int, list[DuplicatePair]] = {}
    for pair in pairs:
        clusters.setdefault(sets[pair.first], []).append(pair)
    return list(clusters.values())


class _Candidate(NamedTuple):
    """Two images that may be copies: one as it is (plain), one in a view (viewed)."""

    correlation: float
    plain: int
    viewed: int
    view: int


def _find_candidates(
    images: Sequence[Fingerprint], cluster: Positions, on_progress: Progress
) -> Iterator[_Candidate]:
    """Yield pairs whose hashes and coarse structure agree, each in its best view.

    The caller updates ``cluster`` [N] meanwhile; pairs of one cluster are skipped.
    """
    if len(images) < 2:
        return
    table = np.array([image.hashes for image in images])
    coarse = [np.stack([_coarse(_zoom(image.thumb, zoom)) for image in images]) for zoom in ZOOMS]
    for top in range(0, len(images), _ROWS):
        best: dict[tuple[int, int], _Candidate] = {}
        for view in range(table.shape[1]):
            for plain, viewed in _match_hashes(table, view, top):
                unlinked = cluster[plain] != cluster[viewed]
                for candidate in _match_coarse(coarse, plain[unlinked], viewed[unlinked], view):
                    ends = sorted((candidate.plain, candidate.viewed))
                    key = (ends[0], ends[1])
                    best[key] = max(best.get(key, candidate), candidate, key=itemgetter(0))
        yield from (candidate for _, candidate in sorted(best.items()))
        on_progress(min(top + _ROWS, len(images)), len(images))


def _match_hashes(
    hashes: NDArray[np.uint64], view: int, top: int
) -> Iterator[tuple[Positions, Positions]]:
    """Yield positions of plain images and of images that match them in this view.

    One of the two is in the _ROWS rows of hashes [N, views] from ``top`` on, the other after it.
    """
    # Views of the whole image are symmetric: one order is enough.
    for a, b in ((0, view), (view, 0)) if view >= SYMMETRIES else ((0, view),):
        distance = np.bitwise_count(hashes[top : top + _ROWS, None, a] ^ hashes[None, top:, b])
        i, j = np.nonzero(distance <= MAX_HASH_DISTANCE)
        first, second = i[i < j] + top, j[i < j] + top
        yield (first, second) if a == 0 else (second, first)


def _match_coarse(
    coarse: Sequence[Floats], plain: Positions, viewed: Positions, view: int
) -> Iterator[_Candidate]:
    """Yield the pairs whose coarse structure correlates; coarse: [N, side, side] per zoom."""
    zoom, symmetry = divmod(view, SYMMETRIES)
    for start in range(0, len(plain), _COARSE_BATCH):
        i, j = plain[start : start + _COARSE_BATCH], viewed[start : start + _COARSE_BATCH]
        correlation = np.einsum("nyx,nyx->n", coarse[0][i], _transform(coarse[zoom][j], symmetry))
        for k in np.flatnonzero(correlation >= MIN_COARSE_CORRELATION).tolist():
            yield _Candidate(float(correlation[k]), int(i[k]), int(j[k]), view)


def _coarse(thumb: Pixels) -> Floats:
    """Return float32 [16, 16] of mean 0 and norm 1, without slow changes of light."""
    size = (_COARSE_PX, _COARSE_PX)
    small = cv2.resize(thumb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), 2)
    detail -= detail.mean()
    return np.asarray(detail / max(float(np.linalg.norm(detail)), 1e-6))


def _zoom(thumb: Pixels, zoom: float) -> Pixels:
    low, high = THUMB_PX * (1 - zoom) / 2, THUMB_PX * (1 + zoom) / 2
    image, size = Image.fromarray(thumb), (THUMB_PX, THUMB_PX)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=(low, low, high, high)))


def _transform(square: Square, symmetry: int) -> Square:
    """Rotate [..., S, S] by 90 degrees ``symmetry % 4`` times, from 4 on mirrored first."""
    mirrored = square[..., ::-1] if symmetry >= 4 else square
    return np.ascontiguousarray(np.rot90(mirrored, symmetry % 4, axes=(-2, -1)))
