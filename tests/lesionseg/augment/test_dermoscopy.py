"""What dermoscopes add: each draws something, in the image only, alike at every resolution."""

import inspect
import itertools
import pickle

import albumentations as A
import cv2
import numpy as np
import pytest

from lesionseg.augment import dermoscopy
from lesionseg.augment.dermoscopy import (
    Bubbles,
    DrawnArtefact,
    Glare,
    Hair,
    HairRemoval,
    Ruler,
    Vignette,
    artefacts,
    draw_lines,
    empty_layer,
    paint_layer,
)

from .samples import difference, iou, results, skin

KINDS = [
    kind
    for kind in vars(dermoscopy).values()
    if inspect.isclass(kind)
    and issubclass(kind, A.ImageOnlyTransform)
    and kind is not DrawnArtefact
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def hairy(height=96, width=96):
    """Return skin, the same with four straight hairs, and the mask of the hairs."""
    image, _ = skin(height, width)
    ends = np.array(
        [[[0.1, 0.2], [0.9, 0.5]], [[0.2, 0.9], [0.45, 0.05]], [[0.6, 0.1], [0.7, 0.95]], [[0.05, 0.75], [0.95, 0.8]]]  # noqa: E501
    )  # fmt: skip
    drawn = empty_layer(height, width)
    draw_lines(drawn, ends * (width, height), [0.012 * min(height, width)] * 4, 0.9)
    return image, paint_layer(image, drawn, (30, 22, 20)), drawn > 0


def run(kind, strength, image, n, seed=0):
    mask = np.zeros(image.shape[:2], np.uint8)
    return [i for i, _ in results(A.Compose([kind(strength)]), image, mask, n, seed)]


def test_the_entry_has_every_kind_once():
    assert {type(t) for t in artefacts(0.5)} == set(KINDS) and len(artefacts(0.5)) == len(KINDS)
    assert {t.strength for t in artefacts(0.3)} == {0.3}
    halves = [t.p for t in artefacts(0.5, share=0.5)]
    assert halves == pytest.approx([t.p / 2 for t in artefacts(0.5)])


@every_kind
def test_each_changes_the_image_and_only_the_image(kind):
    image = skin(80, 128)[0] if kind is not HairRemoval else hairy(80, 128)[1]
    mask = np.random.default_rng(0).integers(0, 2, image.shape[:2], dtype=np.uint8)
    before = image.copy(), mask.copy()
    changes = []
    for changed, changed_mask in results(A.Compose([kind(0.5)]), image, mask, 20):
        assert np.array_equal(changed_mask, before[1])
        assert changed.shape == image.shape and changed.dtype == np.uint8
        changes.append(difference(changed, image))
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])
    assert np.mean(changes) > 0.02 and sum(c > 0 for c in changes) > 15
    assert max(changes) < 60  # the skin is still to be seen


@every_kind
def test_tiny_images(kind):
    for shape, strength in itertools.product([(1, 1), (3, 50), (16, 16)], [0.1, 1.0]):
        image = np.full((*shape, 3), 128, np.uint8)
        assert all(i.shape == image.shape for i in run(kind, strength, image, 10))


@every_kind
def test_all_random_numbers_are_parameters(kind):
    _, image, _ = hairy()

    def draw(transform):
        transform.set_random_seed(5)
        params = {**transform.get_params(), "shape": image.shape}
        return params | transform.get_params_dependent_on_data(params, {})

    transform, again = kind(1.0), pickle.loads(pickle.dumps(kind(1.0)))
    params = draw(transform)
    once = transform.apply(image, **params)
    assert np.array_equal(once, transform.apply(image, **params))
    assert np.array_equal(once, again.apply(image, **draw(again)))


@every_kind
def test_effect_is_similar_at_every_resolution(kind):
    if kind is HairRemoval:
        images = [hairy(size, size)[1] for size in (96, 288)]
    else:
        images = [skin(size, size)[0] for size in (96, 288)]
    small, large = (
        np.mean([difference(i, image) for i in run(kind, 0.5, image, 30)]) for image in images
    )
    assert small == pytest.approx(large, rel=0.5)


def test_hair_is_thin_and_dark():
    image, _ = skin(128, 128)
    for changed in run(Hair, 1.0, image, 20):
        assert (changed <= image.astype(int) + 1).all()
        drawn = (np.abs(changed.astype(int) - image).max(axis=2) > 10).astype(np.uint8)
        # Opening with a square of a twentieth of the side leaves next to nothing of a hair.
        left = cv2.morphologyEx(drawn, cv2.MORPH_OPEN, np.ones((6, 6), np.uint8))
        assert left.mean() < 0.02 and drawn.mean() < 0.5


def test_hair_removal_removes_straight_hair():
    clean, dirty, where = hairy()
    for strength in (0.1, 0.5, 1.0):
        for cleaned in run(HairRemoval, strength, dirty, 3):
            assert difference(cleaned, clean) < 0.25 * difference(dirty, clean)
            near = cv2.dilate(where.astype(np.uint8), np.ones((5, 5))) > 0
            assert difference(cleaned[~near], dirty[~near]) < 0.5


def test_hair_removal_removes_drawn_hair():
    image, _ = skin(128, 128)
    before, after = [], []
    for dirty in run(Hair, 0.6, image, 10):
        (cleaned,) = run(HairRemoval, 1.0, dirty, 1)
        before.append(difference(dirty, image))
        after.append(difference(cleaned, image))
    assert np.mean(after) < 0.5 * np.mean(before)


def test_hair_removal_leaves_a_lesion_and_its_dots_alone():
    image, _ = skin()
    for y, x in [(30, 40), (45, 55), (60, 35)]:
        cv2.circle(image, (x, y), 3, (70, 40, 35), -1)
    for strength in (0.1, 1.0):
        assert all(np.array_equal(i, image) for i in run(HairRemoval, strength, image, 5))


def test_ruler_marks_lie_along_each_of_the_four_sides():
    image, _ = skin(128, 128)
    sides = set()
    for changed in run(Ruler, 0.5, image, 40):
        y, x = np.argwhere(np.abs(changed.astype(int) - image).max(axis=2) > 5).mean(axis=0) - 63.5
        assert max(abs(y), abs(x)) > 20
        sides.add((abs(y) > abs(x), (y if abs(y) > abs(x) else x) > 0))
    assert len(sides) == 4


def test_glare_is_white_and_bubbles_have_bright_and_dark_rims():
    image, _ = skin(128, 128)
    for changed in run(Glare, 1.0, image, 10):
        assert (changed.astype(int) >= image.astype(int) - 1).all() and changed.max() > 205
    changes = [i.astype(int) - image for i in run(Bubbles, 1.0, image, 10)]
    assert np.median([c.max() for c in changes]) > 40
    assert np.median([c.min() for c in changes]) < -10


@pytest.mark.parametrize("shape", [(128, 128), (96, 144)])
def test_vignette_darkens_only_corners(shape):
    image = np.full((*shape, 3), 180, np.uint8)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    away = np.hypot(x - width / 2, y - height / 2) / (np.hypot(height, width) / 2)
    for changed in run(Vignette, 1.0, image, 20):
        grey = changed.mean(axis=2)
        assert (grey[away < 0.7] == 180).all()
        assert min(grey[0, 0], grey[0, -1], grey[-1, 0], grey[-1, -1]) < 178
    # The darkest are as round as the field of a dermoscope: dark just where the distance says.
    dark = min(run(Vignette, 1.0, image, 40), key=np.mean)
    outside = (dark.mean(axis=2) < 120).astype(np.uint8)
    far = away > np.sort(away, axis=None)[-int(outside.sum())]
    assert iou(outside, far.astype(np.uint8)) > 0.6


def test_paint_layer_with_transparent_and_opaque_layers():
    image, _ = skin(32, 32)
    assert np.array_equal(paint_layer(image, empty_layer(32, 32), (1, 2, 3)), image)
    assert (paint_layer(image, empty_layer(32, 32) + np.uint8(255), (1, 2, 3)) == [1, 2, 3]).all()
    half = paint_layer(image, empty_layer(32, 32) + np.uint8(51), (100, 100, 100))
    assert np.abs(half - (0.8 * image + 0.2 * 100)).max() <= 1
