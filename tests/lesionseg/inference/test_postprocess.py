"""Postprocessing against SciPy, hand-worked masks and the laws of morphology."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage

from lesionseg.errors import InputError
from lesionseg.inference.crf import crf
from lesionseg.inference.postprocess import POSTPROCESS, check_chain, finish, operate, refine
from lesionseg.space import Pick

EIGHT = np.ones((3, 3))
CRF = Pick("crf", {"weight": 8.0, "colour": 20.0})
OPERATIONS = ("largest", "fill_holes", "opening", "closing")
DISCS = [Pick(name, {"radius": r}) for name in ("opening", "closing") for r in (0.2, 2.0, 5.0)]
PICKS = [Pick("largest"), Pick("fill_holes"), *DISCS]


def masks(shape=(37, 53), n=12, seed=0):
    """From dust to blobs to nearly full, bool [H, W] each."""
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
    """Opening or closing; beyond the border there is nothing to erode from or grow from."""
    element = disc(percent / 100 * np.hypot(*mask.shape))
    eroded = lambda m: ndimage.binary_erosion(m, element, border_value=1)  # noqa: E731
    dilated = lambda m: ndimage.binary_dilation(m, element)  # noqa: E731
    return dilated(eroded(mask)) if name == "opening" else eroded(dilated(mask))


def image(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("pick", DISCS, ids=str)
def test_opening_and_closing_are_scipys_with_a_disc(pick):
    for mask in masks():
        wanted = by_scipy(pick.name, mask, pick.params["radius"])
        np.testing.assert_array_equal(operate((pick,), mask), wanted)


def test_the_largest_component_is_scipys():
    for mask in masks(n=24):
        labels, n = ndimage.label(mask, EIGHT)
        sizes = ndimage.sum_labels(mask, labels, range(1, n + 1))
        found = operate((Pick("largest"),), mask)
        assert found.sum() == sizes.max()
        assert len(np.unique(labels[found])) == 1
        assert (labels[~found] != labels[found][0]).all()


def test_filled_holes_are_scipys():
    for mask in masks(n=24):
        found = operate((Pick("fill_holes"),), mask)
        np.testing.assert_array_equal(found, ndimage.binary_fill_holes(mask))


def test_components_touch_at_corners_and_the_larger_stays():
    mask = drawn("#..##", ".#.##", "..#..", ".....", "###..")
    assert (operate((Pick("largest"),), mask) == drawn("#..##", ".#.##", "..#..", *2 * [5 * "."])
            ).all()  # fmt: skip


def test_of_two_components_of_one_size_the_upper_stays():
    mask = drawn("...##", ".....", "##...")
    assert (operate((Pick("largest"),), mask) == drawn("...##", ".....", ".....")).all()


def test_a_hole_is_filled_a_bay_is_not_and_a_corner_is_no_way_out():
    mask = drawn("####.", "#..#.", "#.###", "###.#", "..#.#")
    wanted = drawn("####.", "#####"[:4] + ".", "#####", "###.#", "..#.#")
    assert (operate((Pick("fill_holes"),), mask) == wanted).all()
    leak = drawn(".###", "#.##", "####", "####")  # the hole and the skin meet at a corner only
    assert operate((Pick("fill_holes"),), leak)[1, 1]


def test_opening_removes_a_speck_and_keeps_a_disc():
    y, x = np.mgrid[:60, :80]  # a diagonal of 100 pixels: percent are pixels
    lesion = (x - 40) ** 2 + (y - 30) ** 2 <= 15**2
    speck = (x - 5) ** 2 + (y - 5) ** 2 <= 2**2
    opened = operate((Pick("opening", {"radius": 4.0}),), lesion | speck)
    assert not opened[speck].any()
    assert 0.97 * lesion.sum() < opened.sum() <= lesion.sum()


def test_closing_bridges_a_crack_and_leaves_the_outline():
    y, x = np.mgrid[:60, :80]
    lesion = (x - 40) ** 2 + (y - 30) ** 2 <= 15**2
    cracked = lesion & (x != 40)
    closed = operate((Pick("closing", {"radius": 4.0}),), cracked)
    assert closed[20:41, 40].all()
    assert not closed[~lesion & (abs(x - 40) > 6)].any()


def test_radii_go_with_the_diagonal():
    """A disc of 3 % of the diagonal passes a radius of 2.5 % and not one of 4 %, at any size."""
    for side in (50, 100, 200):
        y, x = np.mgrid[:side, :side]
        mask = np.hypot(x - side / 2, y - side / 2) <= 0.03 * side * 2**0.5
        assert operate((Pick("opening", {"radius": 2.0}),), mask).any()
        assert not operate((Pick("opening", {"radius": 4.0}),), mask).any()


@pytest.mark.parametrize("pick", PICKS, ids=str)
def test_an_operation_done_twice_does_nothing_more(pick):
    for mask in masks():
        once = operate((pick,), mask)
        np.testing.assert_array_equal(operate((pick,), once), once)


@pytest.mark.parametrize("pick", PICKS, ids=str)
def test_some_operations_only_remove_and_the_others_only_add(pick):
    changed = 0
    for mask in masks():
        after = operate((pick,), mask)
        small, large = (after, mask) if pick.name in ("largest", "opening") else (mask, after)
        assert not (small & ~large).any()
        changed += (after != mask).any()
    assert changed or pick.params.get("radius") == 0.2  # a fifth of a percent is below a pixel


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_opening_is_closing_of_the_background(radius):
    for mask in masks():
        opened = operate((Pick("opening", {"radius": radius}),), mask)
        closed = operate((Pick("closing", {"radius": radius}),), ~mask)
        np.testing.assert_array_equal(opened, ~closed)


@pytest.mark.parametrize("name", ["opening", "closing", "fill_holes"])
def test_more_in_is_more_out(name):
    for mask, other in zip(masks(seed=1), masks(seed=2), strict=True):
        small, large = operate((Pick(name),), mask & other), operate((Pick(name),), mask)
        assert not (small & ~large).any()


@pytest.mark.parametrize("name", POSTPROCESS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (24, 31)])
def test_empty_masks_stay_empty_and_full_ones_full(name, shape):
    chain = (Pick(name),)
    for level in (0.0, 1.0):
        probability = refine(chain, np.full((16, 16), level, np.float32), image(16))
        mask = finish(chain, probability, shape)
        assert mask.shape == shape
        assert mask.dtype == np.bool_
        assert (mask == bool(level)).all()


@pytest.mark.parametrize("name", POSTPROCESS)
def test_every_row_takes_its_corners_and_leaves_its_input_alone(name):
    option = POSTPROCESS[name]
    corners = [dict(zip(option.space, values, strict=True)) for values in zip(
        *(domain.corners() for domain in option.space.values()), strict=True)]  # fmt: skip
    probability = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    kept = probability.copy()
    probability.flags.writeable = False
    for params in [{}, *corners]:
        chain = (Pick(name, params),)
        refined = refine(chain, probability, image(16))
        assert refined.shape == (16, 16)
        assert finish(chain, refined, (20, 33)).shape == (20, 33)
    np.testing.assert_array_equal(probability, kept)
    assert option.about


def test_an_operation_leaves_its_mask_alone():
    for pick in PICKS:
        mask = next(masks())
        mask.flags.writeable = False
        operate((pick,), mask)


def test_without_a_chain_a_mask_is_cut_at_one_half_exclusive():
    probability = np.array([[0.5, np.nextafter(np.float32(0.5), 1)]], np.float32)
    assert finish((), probability, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize("value", [0.05, 0.3, 0.95])
def test_a_threshold_cuts_above_itself(value):
    near = np.float32(value)
    probability = np.array([[0.0, near, np.nextafter(near, np.float32(1)), 1.0]], np.float32)
    found = finish((Pick("threshold", {"value": value}),), probability, (1, 4))
    assert found.tolist() == [[False, False, True, True]]


def test_probabilities_are_enlarged_before_they_are_cut():
    """Between 0 and 1 the half lies in the middle, a threshold of 0.7 beyond it."""
    probability = np.tile(np.float32([0, 1]), (2, 1))
    places = (np.arange(100) + 0.5) / 50 - 0.5  # in the small picture's pixels
    for value in (0.2, 0.5, 0.7):
        found = finish((Pick("threshold", {"value": value}),), probability, (3, 100))
        assert found.tolist() == 3 * [(places > value).tolist()]


def test_operations_work_at_the_masks_own_size_and_in_their_order():
    probability = np.random.default_rng(5).random((16, 16)).astype(np.float32)
    cut = finish((), probability, (90, 120))
    opening, largest = Pick("opening", {"radius": 2.0}), Pick("largest")
    orders = [(opening, largest), (largest, opening)]
    found = [finish(chain, probability, (90, 120)) for chain in orders]
    for mask, chain in zip(found, orders, strict=True):
        np.testing.assert_array_equal(mask, operate(chain[1:], operate(chain[:1], cut)))
    assert (found[0] != found[1]).any()


def test_stages_come_in_their_order_whatever_the_chains():
    probability = np.random.default_rng(5).random((16, 16)).astype(np.float32)
    threshold, largest = Pick("threshold", {"value": 0.4}), Pick("largest")
    results = []
    for chain in ((CRF, threshold, largest), (largest, threshold, CRF)):
        results.append(finish(chain, refine(chain, probability, image(16)), (40, 30)))
    np.testing.assert_array_equal(*results)


def test_only_the_random_field_refines():
    probability, picture = np.full((16, 16), 0.3, np.float32), image(16)
    probability[4:9, 4:9] = 0.6
    rest = tuple(Pick(name) for name in POSTPROCESS if name != "crf")
    assert refine(rest, probability, picture) is probability
    wanted = crf(probability, picture, weight=8.0, colour=20.0)
    np.testing.assert_array_equal(refine((*rest, CRF), probability, picture), wanted)
    assert (wanted != probability).any()


def test_half_precision_is_enlarged_too():
    probability = np.random.default_rng(1).random((16, 16)).astype(np.float16)
    wanted = finish((), probability.astype(np.float32), (40, 40))
    np.testing.assert_array_equal(finish((), probability, (40, 40)), wanted)


def test_a_checked_chain_has_its_defaults_written_out():
    assert check_chain(()) == ()
    chain = check_chain(tuple(Pick(name) for name in POSTPROCESS))
    assert [pick.name for pick in chain] == list(POSTPROCESS)
    for pick in chain:
        assert pick.params == {n: d.default for n, d in POSTPROCESS[pick.name].space.items()}
    assert check_chain(chain) == chain


def test_operations_may_come_again():
    chain = (Pick("opening"), Pick("largest"), Pick("opening"))
    assert [pick.name for pick in check_chain(chain)] == ["opening", "largest", "opening"]


@pytest.mark.parametrize(
    ("chain", "rule"),
    [
        ((Pick("large"),), "did you mean 'largest'"),
        ((Pick("threshold"), Pick("largest"), Pick("threshold")), "at most one threshold, got 2"),
        ((Pick("crf"), Pick("crf"), Pick("crf")), "at most one crf, got 3"),
        ((Pick("threshold", {"value": 0.0}),), r"postprocess.threshold: value must lie in"),
        ((Pick("opening", {"radius": "wide"}),), "radius must be a number"),
        ((Pick("closing", {"size": 3}),), "unknown parameter 'size'"),
        ((Pick("crf", {"weight": float("nan")}),), "weight must be finite"),
    ],
)
def test_a_chain_that_cannot_be_is_the_users_to_mend(chain, rule):
    with pytest.raises(InputError, match=rule) as caught:
        check_chain(chain)
    assert "\n" not in str(caught.value)
