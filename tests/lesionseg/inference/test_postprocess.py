"""Postprocessing against SciPy, hand-worked masks and the laws of morphology."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage

from lesionseg.inference.crf import crf
from lesionseg.inference.postprocess import (
    POSTPROCESS,
    apply_operations,
    refine_probability,
    to_mask,
)
from lesionseg.space import ComponentConfig

EIGHT = np.ones((3, 3))
CRF = ComponentConfig("crf", {"weight": 8.0, "colour": 20.0})
OPERATIONS = ("largest", "fill_holes", "opening", "closing")
DISCS = [
    ComponentConfig(name, {"radius": r}) for name in ("opening", "closing") for r in (0.2, 2.0, 5.0)
]
COMPONENTS = [ComponentConfig("largest"), ComponentConfig("fill_holes"), *DISCS]


def masks(shape=(37, 53), n=12, seed=0):
    """Masks from single pixels to nearly full, bool [H, W] each."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        field = cv2.GaussianBlur(rng.random(shape), (0, 0), (0.3, 1.0, 2.5)[i % 3])
        yield field > np.quantile(field, rng.uniform(0.05, 0.95))


def drawn(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def disc(radius):
    """Every pixel whose centre is within the radius."""
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return x**2 + y**2 <= radius**2


def by_scipy(name, mask, percent):
    """Opening or closing by SciPy; outside the image is neither lesion nor background."""
    element = disc(percent / 100 * np.hypot(*mask.shape))
    eroded = lambda m: ndimage.binary_erosion(m, element, border_value=1)  # noqa: E731
    dilated = lambda m: ndimage.binary_dilation(m, element)  # noqa: E731
    return dilated(eroded(mask)) if name == "opening" else eroded(dilated(mask))


def image(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("component", DISCS, ids=str)
def test_opening_and_closing_equal_scipys(component):
    for mask in masks():
        wanted = by_scipy(component.name, mask, component.params["radius"])
        np.testing.assert_array_equal(apply_operations((component,), mask), wanted)


def test_largest_component_equals_scipys():
    for mask in masks(n=24):
        labels, n = ndimage.label(mask, EIGHT)
        sizes = ndimage.sum_labels(mask, labels, range(1, n + 1))
        found = apply_operations((ComponentConfig("largest"),), mask)
        assert found.sum() == sizes.max()
        assert len(np.unique(labels[found])) == 1
        assert (labels[~found] != labels[found][0]).all()


def test_filled_holes_equal_scipys():
    for mask in masks(n=24):
        found = apply_operations((ComponentConfig("fill_holes"),), mask)
        np.testing.assert_array_equal(found, ndimage.binary_fill_holes(mask))


def test_components_are_8_connected():
    mask = drawn("#..##", ".#.##", "..#..", ".....", "###..")
    largest = apply_operations((ComponentConfig("largest"),), mask)
    assert (largest == drawn("#..##", ".#.##", "..#..", *2 * [5 * "."])).all()


def test_first_of_equal_components_is_kept():
    mask = drawn("...##", ".....", "##...")
    assert (
        apply_operations((ComponentConfig("largest"),), mask) == drawn("...##", ".....", ".....")
    ).all()


def test_holes_are_4_connected():
    mask = drawn("####.", "#..#.", "#.###", "###.#", "..#.#")
    wanted = drawn("####.", "#####"[:4] + ".", "#####", "###.#", "..#.#")
    assert (apply_operations((ComponentConfig("fill_holes"),), mask) == wanted).all()
    leak = drawn(".###", "#.##", "####", "####")  # the hole and the skin meet at a corner only
    assert apply_operations((ComponentConfig("fill_holes"),), leak)[1, 1]


def test_opening_removes_small_parts():
    y, x = np.mgrid[:60, :80]  # a diagonal of 100 pixels: percent are pixels
    lesion = (x - 40) ** 2 + (y - 30) ** 2 <= 15**2
    speck = (x - 5) ** 2 + (y - 5) ** 2 <= 2**2
    opened = apply_operations((ComponentConfig("opening", {"radius": 4.0}),), lesion | speck)
    assert not opened[speck].any()
    assert 0.97 * lesion.sum() < opened.sum() <= lesion.sum()


def test_closing_fills_cracks():
    y, x = np.mgrid[:60, :80]
    lesion = (x - 40) ** 2 + (y - 30) ** 2 <= 15**2
    cracked = lesion & (x != 40)
    closed = apply_operations((ComponentConfig("closing", {"radius": 4.0}),), cracked)
    assert closed[20:41, 40].all()
    assert not closed[~lesion & (abs(x - 40) > 6)].any()


def test_radii_scale_with_the_diagonal():
    """A disc of 3 % of the diagonal passes a radius of 2.5 % and not one of 4 %, at any size."""
    for side in (50, 100, 200):
        y, x = np.mgrid[:side, :side]
        mask = np.hypot(x - side / 2, y - side / 2) <= 0.03 * side * 2**0.5
        assert apply_operations((ComponentConfig("opening", {"radius": 2.0}),), mask).any()
        assert not apply_operations((ComponentConfig("opening", {"radius": 4.0}),), mask).any()


@pytest.mark.parametrize("component", COMPONENTS, ids=str)
def test_operations_are_idempotent(component):
    for mask in masks():
        once = apply_operations((component,), mask)
        np.testing.assert_array_equal(apply_operations((component,), once), once)


@pytest.mark.parametrize("component", COMPONENTS, ids=str)
def test_operations_are_anti_extensive_or_extensive(component):
    changed = 0
    for mask in masks():
        after = apply_operations((component,), mask)
        small, large = (after, mask) if component.name in ("largest", "opening") else (mask, after)
        assert not (small & ~large).any()
        changed += (after != mask).any()
    assert changed or component.params.get("radius") == 0.2  # a fifth of a percent is below a pixel


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_opening_is_closing_of_the_background(radius):
    for mask in masks():
        opened = apply_operations((ComponentConfig("opening", {"radius": radius}),), mask)
        closed = apply_operations((ComponentConfig("closing", {"radius": radius}),), ~mask)
        np.testing.assert_array_equal(opened, ~closed)


@pytest.mark.parametrize("name", ["opening", "closing", "fill_holes"])
def test_operations_are_increasing(name):
    for mask, other in zip(masks(seed=1), masks(seed=2), strict=True):
        small, large = (
            apply_operations((ComponentConfig(name),), mask & other),
            apply_operations((ComponentConfig(name),), mask),
        )
        assert not (small & ~large).any()


@pytest.mark.parametrize("name", POSTPROCESS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (24, 31)])
def test_empty_and_full_masks_are_unchanged(name, shape):
    chain = (ComponentConfig(name),)
    for level in (0.0, 1.0):
        probability = refine_probability(chain, np.full((16, 16), level, np.float32), image(16))
        mask = to_mask(chain, probability, shape)
        assert mask.shape == shape
        assert mask.dtype == np.bool_
        assert (mask == bool(level)).all()


@pytest.mark.parametrize("name", POSTPROCESS)
def test_every_entry_accepts_its_extremes(name):
    option = POSTPROCESS[name]
    corners = [dict(zip(option.space, values, strict=True)) for values in zip(
        *(domain.extremes() for domain in option.space.values()), strict=True)]  # fmt: skip
    probability = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    kept = probability.copy()
    probability.flags.writeable = False
    for params in [{}, *corners]:
        chain = (ComponentConfig(name, params),)
        refined = refine_probability(chain, probability, image(16))
        assert refined.shape == (16, 16)
        assert to_mask(chain, refined, (20, 33)).shape == (20, 33)
    np.testing.assert_array_equal(probability, kept)
    assert option.description


def test_operations_do_not_change_their_input():
    for component in COMPONENTS:
        mask = next(masks())
        mask.flags.writeable = False
        apply_operations((component,), mask)


def test_default_threshold_is_one_half_exclusive():
    probability = np.array([[0.5, np.nextafter(np.float32(0.5), 1)]], np.float32)
    assert to_mask((), probability, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize("value", [0.05, 0.3, 0.95])
def test_threshold_is_exclusive(value):
    near = np.float32(value)
    probability = np.array([[0.0, near, np.nextafter(near, np.float32(1)), 1.0]], np.float32)
    found = to_mask((ComponentConfig("threshold", {"value": value}),), probability, (1, 4))
    assert found.tolist() == [[False, False, True, True]]


def test_probabilities_are_resized_before_thresholding():
    """Between 0 and 1 the half lies in the middle, a threshold of 0.7 beyond it."""
    probability = np.tile(np.float32([0, 1]), (2, 1))
    places = (np.arange(100) + 0.5) / 50 - 0.5  # in the small picture's pixels
    for value in (0.2, 0.5, 0.7):
        found = to_mask((ComponentConfig("threshold", {"value": value}),), probability, (3, 100))
        assert found.tolist() == 3 * [(places > value).tolist()]


def test_operations_run_at_full_size_in_order():
    probability = np.random.default_rng(5).random((16, 16)).astype(np.float32)
    cut = to_mask((), probability, (90, 120))
    opening, largest = ComponentConfig("opening", {"radius": 2.0}), ComponentConfig("largest")
    orders = [(opening, largest), (largest, opening)]
    found = [to_mask(chain, probability, (90, 120)) for chain in orders]
    for mask, chain in zip(found, orders, strict=True):
        np.testing.assert_array_equal(
            mask, apply_operations(chain[1:], apply_operations(chain[:1], cut))
        )
    assert (found[0] != found[1]).any()


def test_stage_order_does_not_depend_on_the_chain():
    probability = np.random.default_rng(5).random((16, 16)).astype(np.float32)
    threshold, largest = ComponentConfig("threshold", {"value": 0.4}), ComponentConfig("largest")
    results = []
    for chain in ((CRF, threshold, largest), (largest, threshold, CRF)):
        results.append(to_mask(chain, refine_probability(chain, probability, image(16)), (40, 30)))
    np.testing.assert_array_equal(*results)


def test_only_the_crf_refines_probabilities():
    probability, picture = np.full((16, 16), 0.3, np.float32), image(16)
    probability[4:9, 4:9] = 0.6
    rest = tuple(ComponentConfig(name) for name in POSTPROCESS if name != "crf")
    assert refine_probability(rest, probability, picture) is probability
    wanted = crf(probability, picture, weight=8.0, colour=20.0)
    np.testing.assert_array_equal(refine_probability((*rest, CRF), probability, picture), wanted)
    assert (wanted != probability).any()


def test_half_precision_is_resized():
    probability = np.random.default_rng(1).random((16, 16)).astype(np.float16)
    wanted = to_mask((), probability.astype(np.float32), (40, 40))
    np.testing.assert_array_equal(to_mask((), probability, (40, 40)), wanted)
