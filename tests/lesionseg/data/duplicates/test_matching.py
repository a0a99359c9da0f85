"""Near-duplicates are found after every change; different images do not match."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.duplicates import matching
from lesionseg.data.duplicates.alignment import MIN_SIMILARITY, aligned_similarity
from lesionseg.data.duplicates.matching import (
    DuplicatePair,
    cluster_pairs,
    find_duplicate_pairs,
    fingerprint_image,
)
from tests.lesionseg.data.copies import CHANGES, cropped, recompressed, texture

#: Changes that need alignment: no view and no zoom matches.
MOVED = {
    "5% cut off one side": lambda i: i.crop((i.width // 20, 0, i.width, i.height)),
    "4% cut off at a corner": lambda i: i.crop((i.width // 25, i.height // 25, i.width, i.height)),
    "turned by 3 degrees": lambda i: cropped(i.rotate(3, Image.Resampling.BICUBIC), 0.03),
}


def fingerprints_of(*images):
    return [fingerprint_image(image, f"{i}") for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def different():
    """Fingerprints of twelve different images."""
    return [fingerprint_image(texture(seed), f"s{seed}") for seed in range(12)]


def positions(pairs):
    """Return the positions of the images of each cluster."""
    return [
        sorted({i for pair in cluster for i in (pair.first, pair.second)})
        for cluster in cluster_pairs(pairs)
    ]


def noisy(seed, n):
    """Yield n copies of one texture with different noise."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(texture(seed)).astype(int)
    for _ in range(n):
        noise = rng.integers(-3, 4, pixels.shape)
        yield Image.fromarray((pixels + noise).clip(0, 255).astype("u1"))


def faint(seed, contrast):
    """Return a texture with reduced contrast."""
    pixels = np.asarray(texture(seed)).astype(float)
    return Image.fromarray((150 + (pixels - 150) * contrast).astype("u1"))


@pytest.mark.parametrize("change", {**CHANGES, **MOVED})
def test_a_copy_is_found_after_each_change(different, change):
    for seed in (3, 8):
        copy = fingerprint_image({**CHANGES, **MOVED}[change](texture(seed)), "copy")
        (pair,) = find_duplicate_pairs([*different, copy])
        assert (pair.first, pair.second, pair.exact) == (seed, 12, False)
        assert MIN_SIMILARITY <= pair.similarity <= 1


def test_different_images_do_not_match(different):
    assert find_duplicate_pairs(different) == []


def test_fingerprints_have_one_size():
    for size in ((1, 1), (3, 500), (240, 180)):
        fingerprint = fingerprint_image(
            texture(0, size) if size[0] > 1 else Image.new("RGB", size), "x"
        )
        assert fingerprint.thumb.shape == (64, 64) and fingerprint.thumb.dtype == np.uint8
        assert fingerprint.hashes.shape == (16,) and fingerprint.hashes.dtype == np.uint64


def test_equal_images_are_paired_with_the_first():
    image = texture(1)
    found = find_duplicate_pairs(
        [
            *(fingerprint_image(image, digest) for digest in "abaac"),
            fingerprint_image(texture(2), "z"),
        ]
    )
    exact = [t for t in found if t.exact]
    assert exact == [DuplicatePair(0, 2, 1.0, exact=True), DuplicatePair(0, 3, 1.0, exact=True)]
    # Equal images with other digests match by similarity; in one batch all pairs are aligned.
    assert [(t.first, t.second) for t in found if not t.exact] == [(0, 1), (0, 4), (1, 4)]
    assert all(t.similarity == pytest.approx(1) for t in found)


def test_one_image_or_none_has_no_copies(different):
    assert find_duplicate_pairs([]) == []
    assert find_duplicate_pairs(different[:1]) == []


def test_many_equal_images_give_one_cluster_and_few_pairs():
    frame = fingerprint_image(Image.new("RGB", (40, 30)), "black")
    found = find_duplicate_pairs([frame] * 3000)
    assert len(found) == 2999 and all(t.first == 0 for t in found)
    assert positions(found) == [list(range(3000))]


def test_flat_images_do_not_match():
    greys = [Image.new("RGB", (40, 30), (g, g, g)) for g in (0, 1, 128, 255)]
    assert find_duplicate_pairs(fingerprints_of(*greys)) == []
    noisy = [
        Image.fromarray((120 + np.random.default_rng(s).integers(0, 3, (30, 40, 3))).astype("u1"))
        for s in range(4)
    ]
    assert find_duplicate_pairs(fingerprints_of(*noisy)) == []


def test_images_below_the_minimum_contrast_do_not_match():
    pair = [
        fingerprint_image(faint(1, 0.06), "a"),
        fingerprint_image(recompressed(faint(1, 0.06), 95), "b"),
    ]
    assert all(1.5 < each.thumb.std() < 3 for each in pair)
    assert find_duplicate_pairs(pair) == []
    pair = [
        fingerprint_image(faint(1, 0.1), "a"),
        fingerprint_image(recompressed(faint(1, 0.1), 95), "b"),
    ]
    assert all(3 < each.thumb.std() < 4 for each in pair)
    assert len(find_duplicate_pairs(pair)) == 1


def test_positions_count_flat_images():
    flat = Image.new("RGB", (40, 30))
    image = texture(5)
    found = find_duplicate_pairs(
        fingerprints_of(flat, texture(4), flat, image, flat, CHANGES["JPEG 60"](image))
    )
    assert [(t.first, t.second) for t in found] == [(3, 5)]


def test_hash_matches_agree_with_counted_bits():
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2**63, 70, dtype=np.uint64)
    views = plain.copy()
    for i in range(70):  # distances on both sides of the limit
        for bit in rng.choice(64, int(rng.integers(0, 25)), replace=False):
            views[i] ^= np.uint64(1) << np.uint64(bit)
    views = np.roll(views, 1)
    hashes = np.stack([plain] + [views] * 15, axis=1)
    # Views of the whole image are symmetric, so one order is enough.
    for view, both in ((1, False), (9, True)):
        expected = {
            (i, j)
            for i in range(70)
            for j in range(70)
            if (i != j if both else i < j) and bin(int(plain[i]) ^ int(views[j])).count("1") <= 12
        }
        found = [
            pair
            for top in range(0, 70, matching._ROWS)
            for i, j in matching._match_hashes(hashes, view, top)
            for pair in zip(i.tolist(), j.tolist(), strict=True)
        ]
        assert len(found) == len(set(found))
        assert set(found) == expected and len(expected) > 5


@pytest.mark.parametrize(("bits", "found"), [(12, 1), (13, 0)])
def test_hashes_may_differ_in_twelve_bits(bits, found):
    one = fingerprint_image(texture(0), "one")
    other = one._replace(digest="other", hashes=one.hashes ^ np.uint64(2**bits - 1))
    assert len(find_duplicate_pairs([one, other])) == found


def counted(monkeypatch):
    """Count the alignments."""
    calls = []
    monkeypatch.setattr(
        matching, "aligned_similarity", lambda a, b: calls.append(1) or aligned_similarity(a, b)
    )
    return calls


def test_many_copies_give_one_cluster_with_few_alignments(monkeypatch):
    calls = counted(monkeypatch)
    found = find_duplicate_pairs(
        [fingerprint_image(image, f"{i}") for i, image in enumerate(noisy(1, 300))]
    )
    assert positions(found) == [list(range(300))]
    # Of 44,850 pairs: each image once, and those aligned in the same batch.
    assert 299 <= len(calls) <= 299 + 2 * matching._ALIGN_BATCH
    assert len(found) <= len(calls)


def test_clusters_do_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(matching, "_ALIGN_BATCH", 2)  # linked pairs are skipped early
    changes = ["as it is", "JPEG 60", "rotate_90", "darker", "cropped by 2%", "twice the size"]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(18).tolist()
        fingerprints, clusters = [None] * 18, {}
        for place, k in enumerate(order):
            image, change = texture(k % 3), changes[k // 3]
            fingerprints[place] = fingerprint_image(CHANGES.get(change, lambda i: i)(image), f"{k}")
            clusters.setdefault(k % 3, []).append(place)
        assert positions(find_duplicate_pairs(fingerprints)) == sorted(
            sorted(each) for each in clusters.values()
        )


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    fingerprints = [
        fingerprint_image(image, f"{i}") for i, image in enumerate([*noisy(1, 50), *noisy(2, 50)])
    ]
    results = []
    for workers in (1, 2, 3 * (os.cpu_count() or 1)):
        monkeypatch.setattr(
            matching, "ThreadPoolExecutor", lambda workers=workers: ThreadPoolExecutor(workers)
        )
        results.append(find_duplicate_pairs(fingerprints))
    assert results[0] == results[1] == results[2] and 98 <= len(results[0]) < 300


def test_similarity_is_1_for_itself_and_low_for_others():
    a, b = (fingerprint_image(texture(seed), "x").thumb for seed in (1, 2))
    assert aligned_similarity(a, a) == pytest.approx(1, abs=1e-5)
    assert aligned_similarity(a, b) < 0.4
    assert aligned_similarity(a, np.full_like(a, 9)) == pytest.approx(0, abs=1e-5)


def test_clusters_are_transitive():
    pairs = [DuplicatePair(a, b, 0.9, exact=False) for a, b in ((1, 4), (4, 6), (2, 3))]
    assert positions(pairs) == [[1, 4, 6], [2, 3]]
    assert positions([]) == []


def test_progress_is_reported_to_the_end(different):
    results = []
    copies = [fingerprint_image(CHANGES["darker"](texture(k)), f"copy {k}") for k in range(6)]
    find_duplicate_pairs([*different, *copies], lambda done, total: results.append((done, total)))
    assert results == [(16, 18), (18, 18)]
