"""Copies are found whatever was done to them; strangers are not taken for copies."""

import numpy as np
import pytest
from PIL import Image

from lesionseg.data import similar
from lesionseg.data.likeness import FINE, likeness
from lesionseg.data.similar import Twin, clusters, find_twins, look
from tests.lesionseg.data.copies import CHANGES, texture


def looks_of(*images):
    return [look(image, f"{i}") for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def strangers():
    """Twelve looks of pictures that have nothing in common but what all skin has."""
    return [look(texture(seed), f"s{seed}") for seed in range(12)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_whatever_was_done_to_it(strangers, change):
    for seed in (3, 8):
        copy = look(CHANGES[change](texture(seed)), "copy")
        (twin,) = find_twins([*strangers, copy])
        assert (twin.first, twin.second, twin.exact) == (seed, 12, False)
        assert FINE <= twin.likeness <= 1


def test_strangers_are_not_copies(strangers):
    assert find_twins(strangers) == []


def test_a_look_is_small_and_of_one_size_whatever_the_picture():
    for size in ((1, 1), (3, 500), (240, 180)):
        seen = look(texture(0, size) if size[0] > 1 else Image.new("RGB", size), "x")
        assert seen.thumb.shape == (64, 64) and seen.thumb.dtype == np.uint8
        assert seen.hashes.shape == (16,) and seen.hashes.dtype == np.uint64


def test_equal_pixels_are_exact_copies_each_of_the_first_one():
    image = texture(1)
    found = find_twins([*(look(image, digest) for digest in "abaac"), look(texture(2), "z")])
    exact = [t for t in found if t.exact]
    assert exact == [Twin(0, 2, 1.0, exact=True), Twin(0, 3, 1.0, exact=True)]
    # Other digests of the same picture: copies as well, by what they look like.
    assert [(t.first, t.second) for t in found if not t.exact] == [(0, 1), (0, 4), (1, 4)]
    assert all(t.likeness == pytest.approx(1) for t in found)


def test_one_picture_and_none_have_no_copies(strangers):
    assert find_twins([]) == []
    assert find_twins(strangers[:1]) == []


def test_many_equal_pictures_are_linked_in_one_set_and_cost_no_table_of_pairs():
    frame = look(Image.new("RGB", (40, 30)), "black")
    found = find_twins([frame] * 3000)
    assert len(found) == 2999 and all(t.first == 0 for t in found)
    assert clusters(3000, found) == [list(range(3000))]


def test_uniform_pictures_are_copies_only_where_their_pixels_are_equal():
    greys = [Image.new("RGB", (40, 30), (g, g, g)) for g in (0, 1, 128, 255)]
    assert find_twins(looks_of(*greys)) == []
    noisy = [
        Image.fromarray((120 + np.random.default_rng(s).integers(0, 3, (30, 40, 3))).astype("u1"))
        for s in range(4)
    ]
    assert find_twins(looks_of(*noisy)) == []


def test_positions_are_those_of_the_looks_given_flat_ones_among_them():
    flat = Image.new("RGB", (40, 30))
    image = texture(5)
    found = find_twins(looks_of(flat, texture(4), flat, image, flat, CHANGES["JPEG 60"](image)))
    assert [(t.first, t.second) for t in found] == [(3, 5)]


def test_hashes_within_the_radius_are_those_that_counting_bits_finds():
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 2**63, 70, dtype=np.uint64)
    views = plain.copy()
    for i in range(70):  # some bits of each flipped, so that pairs lie on both sides of the radius
        for bit in rng.choice(64, int(rng.integers(0, 25)), replace=False):
            views[i] ^= np.uint64(1) << np.uint64(bit)
    views = np.roll(views, 1)
    for both in (False, True):
        wanted = {
            (i, j)
            for i in range(70)
            for j in range(70)
            if (i != j if both else i < j)
            and bin(int(plain[i]) ^ int(views[j])).count("1") <= similar.RADIUS
        }
        found = [
            pair
            for i, j in similar._near(plain, views, both_ways=both)
            for pair in zip(i.tolist(), j.tolist(), strict=True)
        ]
        assert len(found) == len(set(found))
        assert set(found) == wanted and len(wanted) > 5


def test_likeness_is_one_of_itself_and_near_none_of_a_stranger():
    a, b = (look(texture(seed), "x").thumb for seed in (1, 2))
    assert likeness(a, a) == pytest.approx(1, abs=1e-5)
    assert likeness(a, b) < 0.4
    assert likeness(a, np.full_like(a, 9)) == pytest.approx(0, abs=1e-5)


def test_what_is_linked_through_another_is_one_set():
    twins = [Twin(a, b, 0.9, exact=False) for a, b in ((1, 4), (4, 6), (2, 3))]
    assert clusters(8, twins) == [[1, 4, 6], [2, 3]]
    assert clusters(8, []) == []


def test_progress_is_told_to_its_end(strangers):
    told = []
    find_twins(
        [*strangers, look(CHANGES["darker"](texture(0)), "copy")],
        lambda done, total: told.append((done, total)),
    )
    assert told and told[-1][0] == told[-1][1] == len(told)
