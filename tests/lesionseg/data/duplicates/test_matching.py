"""DuplicateCluster are found whatever was done to them; strangers are not taken for copies."""

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

#: What no view and no zoom about the centre lays upon the whole: it has to be moved to fit.
MOVED = {
    "5% cut off one side": lambda i: i.crop((i.width // 20, 0, i.width, i.height)),
    "4% cut off at a corner": lambda i: i.crop((i.width // 25, i.height // 25, i.width, i.height)),
    "turned by 3 degrees": lambda i: cropped(i.rotate(3, Image.Resampling.BICUBIC), 0.03),
}


def looks_of(*images):
    return [fingerprint_image(image, f"{i}") for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def strangers():
    """Twelve looks of pictures that have nothing in common but what all skin has."""
    return [fingerprint_image(texture(seed), f"s{seed}") for seed in range(12)]


def noisy(seed, n):
    """So many copies of one texture, each with noise of its own."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(texture(seed)).astype(int)
    for _ in range(n):
        noise = rng.integers(-3, 4, pixels.shape)
        yield Image.fromarray((pixels + noise).clip(0, 255).astype("u1"))


def faint(seed, contrast):
    """A texture of which so much of the contrast is left, about a middle grey."""
    pixels = np.asarray(texture(seed)).astype(float)
    return Image.fromarray((150 + (pixels - 150) * contrast).astype("u1"))


@pytest.mark.parametrize("change", {**CHANGES, **MOVED})
def test_a_copy_is_found_whatever_was_done_to_it(strangers, change):
    for seed in (3, 8):
        copy = fingerprint_image({**CHANGES, **MOVED}[change](texture(seed)), "copy")
        (twin,) = find_duplicate_pairs([*strangers, copy])
        assert (twin.first, twin.second, twin.exact) == (seed, 12, False)
        assert MIN_SIMILARITY <= twin.similarity <= 1


def test_strangers_are_not_copies(strangers):
    assert find_duplicate_pairs(strangers) == []


def test_a_look_is_small_and_of_one_size_whatever_the_picture():
    for size in ((1, 1), (3, 500), (240, 180)):
        seen = fingerprint_image(texture(0, size) if size[0] > 1 else Image.new("RGB", size), "x")
        assert seen.thumb.shape == (64, 64) and seen.thumb.dtype == np.uint8
        assert seen.hashes.shape == (16,) and seen.hashes.dtype == np.uint64


def test_equal_pixels_are_exact_copies_each_of_the_first_one():
    image = texture(1)
    found = find_duplicate_pairs(
        [
            *(fingerprint_image(image, digest) for digest in "abaac"),
            fingerprint_image(texture(2), "z"),
        ]
    )
    exact = [t for t in found if t.exact]
    assert exact == [DuplicatePair(0, 2, 1.0, exact=True), DuplicatePair(0, 3, 1.0, exact=True)]
    # Other digests of the same picture: copies as well, by what they look like. So few are laid
    # upon each other all at once, before it is known which of them are linked.
    assert [(t.first, t.second) for t in found if not t.exact] == [(0, 1), (0, 4), (1, 4)]
    assert all(t.similarity == pytest.approx(1) for t in found)


def test_one_picture_and_none_have_no_copies(strangers):
    assert find_duplicate_pairs([]) == []
    assert find_duplicate_pairs(strangers[:1]) == []


def test_many_equal_pictures_are_linked_in_one_set_and_cost_no_table_of_pairs():
    frame = fingerprint_image(Image.new("RGB", (40, 30)), "black")
    found = find_duplicate_pairs([frame] * 3000)
    assert len(found) == 2999 and all(t.first == 0 for t in found)
    assert cluster_pairs(3000, found) == [list(range(3000))]


def test_uniform_pictures_are_copies_only_where_their_pixels_are_equal():
    greys = [Image.new("RGB", (40, 30), (g, g, g)) for g in (0, 1, 128, 255)]
    assert find_duplicate_pairs(looks_of(*greys)) == []
    noisy = [
        Image.fromarray((120 + np.random.default_rng(s).integers(0, 3, (30, 40, 3))).astype("u1"))
        for s in range(4)
    ]
    assert find_duplicate_pairs(looks_of(*noisy)) == []


def test_what_shows_next_to_nothing_is_a_copy_only_where_its_pixels_are_equal():
    """Grey levels of a standard deviation of less than 3, however alike they are."""
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


def test_positions_are_those_of_the_looks_given_flat_ones_among_them():
    flat = Image.new("RGB", (40, 30))
    image = texture(5)
    found = find_duplicate_pairs(
        looks_of(flat, texture(4), flat, image, flat, CHANGES["JPEG 60"](image))
    )
    assert [(t.first, t.second) for t in found] == [(3, 5)]


def test_hashes_within_the_radius_are_those_that_counting_bits_finds():
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2**63, 70, dtype=np.uint64)
    views = plain.copy()
    for i in range(70):  # some bits of each flipped, so that pairs lie on both sides of the radius
        for bit in rng.choice(64, int(rng.integers(0, 25)), replace=False):
            views[i] ^= np.uint64(1) << np.uint64(bit)
    views = np.roll(views, 1)
    hashes = np.stack([plain] + [views] * 15, axis=1)
    # Views of the whole picture undo each other: there one order says what the other does.
    for view, both in ((1, False), (9, True)):
        wanted = {
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
        assert set(found) == wanted and len(wanted) > 5


@pytest.mark.parametrize(("bits", "found"), [(12, 1), (13, 0)])
def test_hashes_of_copies_differ_in_twelve_bits_at_most(bits, found):
    one = fingerprint_image(texture(0), "one")
    other = one._replace(digest="other", hashes=one.hashes ^ np.uint64(2**bits - 1))
    assert len(find_duplicate_pairs([one, other])) == found


def counted(monkeypatch):
    """The pairs of which the similarity is asked, as they are asked for."""
    calls = []
    monkeypatch.setattr(
        matching, "aligned_similarity", lambda a, b: calls.append(1) or aligned_similarity(a, b)
    )
    return calls


def test_many_copies_of_one_picture_are_one_set_and_few_of_their_pairs_are_compared(monkeypatch):
    calls = counted(monkeypatch)
    found = find_duplicate_pairs(
        [fingerprint_image(image, f"{i}") for i, image in enumerate(noisy(1, 300))]
    )
    assert cluster_pairs(300, found) == [list(range(300))]
    # Of 44,850 pairs: each picture once, and what is asked before it is known to be linked.
    assert 299 <= len(calls) <= 299 + 2 * matching._ALIGN_BATCH
    assert len(found) <= len(calls)


def test_all_copies_are_linked_in_whatever_order_they_come(monkeypatch):
    """Also those that are copies of a copy only, and sets that stand between one another."""
    monkeypatch.setattr(matching, "_ALIGN_BATCH", 2)  # so that linked pairs are left out among few
    changes = ["as it is", "JPEG 60", "rotate_90", "darker", "cropped by 2%", "twice the size"]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(18).tolist()
        looks, homes = [None] * 18, {}
        for place, k in enumerate(order):
            image, change = texture(k % 3), changes[k // 3]
            looks[place] = fingerprint_image(CHANGES.get(change, lambda i: i)(image), f"{k}")
            homes.setdefault(k % 3, []).append(place)
        assert cluster_pairs(18, find_duplicate_pairs(looks)) == sorted(
            sorted(each) for each in homes.values()
        )


def test_the_same_is_found_whatever_the_number_of_threads(monkeypatch):
    looks = [
        fingerprint_image(image, f"{i}") for i, image in enumerate([*noisy(1, 50), *noisy(2, 50)])
    ]
    told = []
    for workers in (1, 2, 3 * (os.cpu_count() or 1)):
        monkeypatch.setattr(
            matching, "ThreadPoolExecutor", lambda workers=workers: ThreadPoolExecutor(workers)
        )
        told.append(find_duplicate_pairs(looks))
    assert told[0] == told[1] == told[2] and 98 <= len(told[0]) < 300


def test_likeness_is_one_of_itself_and_near_none_of_a_stranger():
    a, b = (fingerprint_image(texture(seed), "x").thumb for seed in (1, 2))
    assert aligned_similarity(a, a) == pytest.approx(1, abs=1e-5)
    assert aligned_similarity(a, b) < 0.4
    assert aligned_similarity(a, np.full_like(a, 9)) == pytest.approx(0, abs=1e-5)


def test_what_is_linked_through_another_is_one_set():
    twins = [DuplicatePair(a, b, 0.9, exact=False) for a, b in ((1, 4), (4, 6), (2, 3))]
    assert cluster_pairs(8, twins) == [[1, 4, 6], [2, 3]]
    assert cluster_pairs(8, []) == []


def test_progress_is_told_to_its_end(strangers):
    told = []
    copies = [fingerprint_image(CHANGES["darker"](texture(k)), f"copy {k}") for k in range(6)]
    find_duplicate_pairs([*strangers, *copies], lambda done, total: told.append((done, total)))
    assert told == [(16, 18), (18, 18)]
