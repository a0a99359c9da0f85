"""The contract of every row of AUGMENTS: sizes, types, mask values, alignment, determinism."""

import itertools
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch

from lesionseg.augment import AUGMENTS, build_augment, build_full, reseed
from lesionseg.errors import InputError
from lesionseg.space import Pick


def corners(name):
    space = AUGMENTS[name].space
    for values in itertools.product(*(d.corners() for d in space.values())):
        yield Pick(name, dict(zip(space, values, strict=True)))


PICKS = [Pick(name) for name in AUGMENTS]
PICKS += [p for name in AUGMENTS for p in corners(name) if p.params]
every_row = pytest.mark.parametrize(
    "pick", PICKS, ids=[f"{p.name}-{dict(p.params)}" for p in PICKS]
)


def marker(size=64):
    """A bright blob, off centre and longer than wide, and its mask."""
    y, x = np.mgrid[:size, :size] / size
    mask = (((x - 0.34) * 1.4) ** 2 + (y - 0.42) ** 2 < 0.2**2).astype(np.uint8)
    image = np.full((size, size, 3), 30, np.uint8)
    image[mask > 0] = 220
    return image, mask


def noise(size, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return image, (rng.random((size, size)) < 0.4).astype(np.uint8)


def results(pipeline, image, mask, n, seed=0):
    reseed(pipeline, seed)
    for _ in range(n):
        changed = pipeline(image=image, mask=mask)
        yield changed["image"], changed["mask"]


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@every_row
@pytest.mark.parametrize("size", [16, 33, 64])
def test_sizes_types_and_mask_values_are_kept(pick, size):
    image, mask = noise(size)
    before = image.copy(), mask.copy()
    for changed, changed_mask in results(build_augment(pick), image, mask, 40):
        assert changed.shape == image.shape and changed.dtype == np.uint8
        assert changed_mask.shape == mask.shape and changed_mask.dtype == np.uint8
        assert set(np.unique(changed_mask)) <= {0, 1}
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


@every_row
def test_the_mask_goes_wherever_the_image_goes(pick):
    image, mask = marker()
    # What a mask left behind by a flip would score: the test could see it.
    assert overlap(mask, mask[:, ::-1]) < 0.4 and overlap(mask, mask[::-1]) < 0.7
    for changed, changed_mask in results(build_augment(pick), image, mask, 150):
        grey = changed.mean(axis=2)
        seen = (grey > (grey.min() + grey.max()) / 2).astype(np.uint8)
        assert overlap(seen, changed_mask) > 0.9


@every_row
@pytest.mark.parametrize("value", [0, 1], ids=["empty", "full"])
def test_an_empty_mask_stays_empty_and_a_full_one_full(pick, value):
    image, _ = noise(32)
    mask = np.full((32, 32), value, np.uint8)
    for _, changed in results(build_augment(pick), image, mask, 60):
        assert (changed == value).all()


@every_row
@pytest.mark.parametrize("value", [0, 128, 255])
def test_no_corner_of_another_colour_comes_in_from_outside(pick, value):
    image = np.full((32, 32, 3), value, np.uint8)
    for changed, _ in results(build_augment(pick), image, np.zeros((32, 32), np.uint8), 60):
        assert np.ptp(changed, axis=(0, 1)).max() <= 1


@every_row
def test_the_seed_fixes_the_changes_whatever_else_is_drawn(pick):
    image, mask = noise(32)

    def draw(seed):
        return [
            (i.copy(), m.copy()) for i, m in results(build_augment(pick), image, mask, 12, seed)
        ]

    first = draw(7)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    again, other = draw(7), draw(8)
    assert all(
        np.array_equal(a, b)
        for p, q in zip(first, again, strict=True)
        for a, b in zip(p, q, strict=True)
    )
    if pick.name != "none":
        assert not all(np.array_equal(p[0], q[0]) for p, q in zip(first, other, strict=True))


@every_row
def test_it_can_be_sent_to_another_process(pick):
    image, mask = noise(32)
    pipeline = build_augment(pick)
    copy = pickle.loads(pickle.dumps(pipeline))
    pairs = zip(results(pipeline, image, mask, 8), results(copy, image, mask, 8), strict=True)
    assert all(
        np.array_equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)
    )


def test_none_changes_nothing():
    image, mask = noise(16)
    for changed, changed_mask in results(build_augment(Pick("none")), image, mask, 5):
        assert np.array_equal(changed, image) and np.array_equal(changed_mask, mask)


def test_flips_give_the_four_mirror_images_about_equally_often():
    image, mask = noise(16)
    mirrored = [(image, mask), *((image[v], mask[v]) for v in (np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]))]  # noqa: E501  # fmt: skip
    seen = Counter()
    for changed, changed_mask in results(build_augment(Pick("flips")), image, mask, 400):
        (which,) = [i for i, (a, _) in enumerate(mirrored) if np.array_equal(a, changed)]
        assert np.array_equal(mirrored[which][1], changed_mask)
        seen[which] += 1
    assert set(seen) == {0, 1, 2, 3}
    assert min(seen.values()) > 70  # 100 are expected; fewer than 70 has odds of one in 4000


def test_without_strength_only_flips_and_quarter_turns_are_left():
    image, mask = noise(24)
    turned = [np.rot90(i, k) for i in (image, image[:, ::-1]) for k in range(4)]
    seen = set()
    for changed, changed_mask in results(build_full(0.0), image, mask, 80):
        # The detour through another colour space costs a grey level.
        away = [np.abs(changed.astype(int) - t).max() for t in turned]
        which = int(np.argmin(away))
        assert away[which] <= 1
        masks = [np.rot90(m, k) for m in (mask, mask[:, ::-1]) for k in range(4)]
        assert np.array_equal(masks[which], changed_mask)
        seen.add(which)
    assert seen == set(range(8))


def test_more_strength_changes_more():
    image, mask = marker()

    def mean_change(strength):
        pipeline = build_augment(Pick("full", {"strength": strength}))
        # Flips change as much at every strength; the area and the colours do not.
        changes = [
            abs(int(m.sum()) - int(mask.sum())) + np.abs(np.sort(i, axis=None) - np.sort(image, axis=None).astype(int)).mean()  # noqa: E501
            for i, m in results(pipeline, image, mask, 100)
        ]  # fmt: skip
        return np.mean(changes)

    assert mean_change(0.1) < mean_change(0.5) < mean_change(1.0)


def test_a_pick_outside_the_table_is_refused():
    with pytest.raises(InputError, match=r"^unknown augment 'flip' \(did you mean 'flips'\?\)$"):
        build_augment(Pick("flip"))
    with pytest.raises(InputError, match=r"strength must lie in \[0\.1, 1\], got 0"):
        build_augment(Pick("full", {"strength": 0}))
