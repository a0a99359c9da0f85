"""Distances of boundaries against SciPy, MONAI on whole images, and shapes worked by hand."""

import time
import warnings
from math import hypot, sqrt

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import directed_hausdorff

from lesionseg.metrics.surface import (
    SURFACE_DISTANCES,
    crop,
    percent_of_diagonal,
    surface_distances,
)
from tests.lesionseg.metrics.masks import MASKS, SHAPE, rectangle

OCCUPIED = {name: mask for name, mask in MASKS.items() if mask.any()}
ZERO = dict.fromkeys(SURFACE_DISTANCES, 0.0)


def boundary(mask):
    """The mask's pixels with skin, or the outside, to one of the four sides."""
    padded = np.pad(mask, 1)
    sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return mask & ~np.logical_and.reduce(sides)


def scipys(predicted, truth):
    p, t = boundary(predicted), boundary(truth)
    ways = distance_transform_edt(~t)[p], distance_transform_edt(~p)[t]
    points = np.argwhere(p), np.argwhere(t)
    return {
        "assd": np.concatenate(ways).mean(),
        "hd": max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0]),
        "hd95": max(np.percentile(way, 95) for way in ways),
    }


def monais(predicted, truth):
    """MONAI's, of the images as they are."""
    p, t = (torch.from_numpy(mask)[None, None] for mask in (predicted, truth))
    kind = {"include_background": True}
    return {
        "assd": float(compute_average_surface_distance(p, t, symmetric=True, **kind)),
        "hd": float(compute_hausdorff_distance(p, t, **kind)),
        "hd95": float(compute_hausdorff_distance(p, t, percentile=95, **kind)),
    }


@pytest.mark.parametrize("name", OCCUPIED)
def test_distances_equal_scipys(name):
    predicted = MASKS[name]
    for other, truth in OCCUPIED.items():
        ours = surface_distances(predicted, truth)
        assert tuple(ours) == SURFACE_DISTANCES
        assert ours == pytest.approx(scipys(predicted, truth), rel=1e-5), other


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("name", OCCUPIED)
def test_cropping_does_not_change_distances(name):
    """Masks in the middle, at each border, and across the whole of the image."""
    frames = [((0, 0), (0, 0)), ((30, 25), (40, 20)), ((0, 30), (0, 30)), ((30, 0), (30, 0))]
    for other, truth in list(OCCUPIED.items())[::4]:
        for frame in frames:
            pair = np.pad(MASKS[name], frame), np.pad(truth, frame)
            assert surface_distances(*pair) == monais(*pair), (other, frame)
            assert scipys(*crop(*pair)) == scipys(*pair), (other, frame)


def test_a_crop_is_the_box_of_both_masks_and_a_margin():
    predicted, truth = rectangle(10, 20, 12, 22, (99, 99)), rectangle(14, 21, 15, 30, (99, 99))
    for cropped, mask in zip(crop(predicted, truth), (predicted, truth), strict=True):
        assert cropped.shape == (5 + 2, 10 + 2)
        assert cropped.sum() == mask.sum()
    whole = rectangle(0, 0, 99, 99, (99, 99))
    assert crop(whole, truth)[0].shape == (99, 99)


def test_two_squares_shifted_by_3_pixels():
    """Of 16 boundary pixels, the 5 of the far side are 3 away and the 3 middle ones of the near
    side 1; along both other sides the distances are 2, 1 and 0. 24 / 16 on average."""
    left, right = rectangle(4, 2, 9, 7), rectangle(4, 5, 9, 10)
    assert (
        surface_distances(left, right)
        == surface_distances(right, left)
        == {"assd": 1.5, "hd": 3.0, "hd95": 3.0}
    )
    upper, lower = rectangle(1, 4, 6, 9), rectangle(4, 4, 9, 9)
    assert surface_distances(upper, lower) == {"assd": 1.5, "hd": 3.0, "hd95": 3.0}


def test_a_square_inside_a_square():
    """All 8 pixels of the inner boundary are 3 away. On each outer side, 3 pixels are 3 away, 2
    are 1 to the side of that and 2 are 2 to the side; the 4 corners are 3 and 3 away."""
    outer, inner = rectangle(2, 4, 11, 13), rectangle(5, 7, 8, 10)
    outward = 4 * (3 * 3 + 2 * sqrt(10) + 2 * sqrt(13)) + 4 * sqrt(18)
    pooled = (8 * 3 + outward) / (8 + 32)
    for pair in ((outer, inner), (inner, outer)):
        expected = {"assd": pooled, "hd": sqrt(18), "hd95": sqrt(18)}
        assert surface_distances(*pair) == pytest.approx(expected, rel=1e-6)
    # The mean of the two directions' means would be another number.
    assert pooled != pytest.approx((3 + outward / 32) / 2, rel=1e-3)


def test_a_line_and_half_of_it():
    """10 pixels of the other half are 1 to 10 away and 20 lie on each other. The 95th percentile
    of 20 distances stands 0.05 of the way from the 19th, 9, to the 20th, 10."""
    line, half = rectangle(3, 5, 4, 25, (7, 30)), rectangle(3, 5, 4, 15, (7, 30))
    expected = {"assd": 55 / 30, "hd": 10.0, "hd95": 9.05}
    assert surface_distances(half, line) == pytest.approx(expected, rel=1e-6)
    assert surface_distances(half.T, line.T) == pytest.approx(expected, rel=1e-6)


def test_distance_of_two_pixels():
    one, other = rectangle(0, 0, 1, 1), rectangle(3, 4, 4, 5)
    assert surface_distances(one, other) == {"assd": 5.0, "hd": 5.0, "hd95": 5.0}


def test_a_hole_has_a_boundary_too():
    """A hole of one pixel in a 7 x 7 square: its 4 neighbours are 2 from the square's boundary."""
    whole = rectangle(2, 2, 9, 9)
    holed = whole & ~rectangle(5, 5, 6, 6)
    assert surface_distances(holed, whole) == pytest.approx(
        {"assd": 4 * 2 / (28 + 24), "hd": 2.0, "hd95": 2.0}, rel=1e-6
    )


def test_two_empty_masks_agree():
    assert surface_distances(MASKS["empty"], MASKS["empty"]) == ZERO


def test_missed_or_false_lesion_costs_the_diagonal():
    worst = dict.fromkeys(SURFACE_DISTANCES, hypot(*SHAPE))
    for name, mask in OCCUPIED.items():
        assert surface_distances(MASKS["empty"], mask) == worst, name
        assert surface_distances(mask, MASKS["empty"]) == worst, name


def test_empty_prediction_is_worse_than_a_wrong_one():
    """A lesion in the wrong corner of the image is nearer."""
    for shape in ((1, 1), (1, 9), (5, 8)):
        first, last = np.zeros(shape, bool), np.zeros(shape, bool)
        first[0, 0] = last[-1, -1] = True
        assert (
            surface_distances(first, last)["hd"]
            < surface_distances(first, ~np.ones(shape, bool))["hd"]
        )


def test_distances_keep_their_order_and_their_bounds():
    for name, predicted in OCCUPIED.items():
        assert surface_distances(predicted, predicted) == ZERO, name
        for other, truth in list(OCCUPIED.items())[1::4]:
            ours = surface_distances(predicted, truth)
            assert 0 <= ours["assd"] <= ours["hd"] < hypot(*SHAPE), (name, other)
            assert 0 <= ours["hd95"] <= ours["hd"], (name, other)
            assert surface_distances(truth, predicted) == pytest.approx(ours, rel=1e-6), (
                name,
                other,
            )


def test_masks_are_unchanged():
    predicted, truth = MASKS["ring"].copy(), MASKS["half"].copy()
    surface_distances(predicted[::-1, ::2], truth[::-1, ::2])
    assert np.array_equal(predicted, MASKS["ring"]) and np.array_equal(truth, MASKS["half"])


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surface_distances(MASKS["ring"], MASKS["half"])
        surface_distances(MASKS["empty"], MASKS["half"])


def test_a_photograph_of_3000_by_4000_pixels_takes_seconds():
    y, x = np.ogrid[:3000, :4000]
    inner, outer = ((y - 1500) ** 2 + (x - 2000) ** 2 < r * r for r in (900, 1000))
    start = time.process_time()
    ours = surface_distances(inner, outer)
    assert time.process_time() - start < 10
    assert ours == pytest.approx(dict.fromkeys(SURFACE_DISTANCES, 100), abs=1)


def test_shares_of_the_diagonal():
    assert percent_of_diagonal(50.0, (3000, 4000)) == 1.0
    assert percent_of_diagonal(0.0, (3, 4)) == 0.0
    assert percent_of_diagonal(hypot(7, 9), (7, 9)) == 100.0


def test_an_image_and_its_enlargement_have_about_the_same_share():
    predicted, truth = rectangle(2, 3, 30, 40, (60, 80)), rectangle(8, 9, 37, 50, (60, 80))
    small = percent_of_diagonal(surface_distances(predicted, truth)["hd"], (60, 80))
    large = (np.kron(mask, np.ones((4, 4), bool)) for mask in (predicted, truth))
    assert percent_of_diagonal(surface_distances(*large)["hd"], (240, 320)) == pytest.approx(
        small, rel=0.05
    )
