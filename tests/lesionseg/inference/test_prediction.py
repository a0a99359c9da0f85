"""Findings against what SciPy and NumPy make of the same masks."""

import numpy as np
import pytest
from scipy import ndimage

from lesionseg.inference.prediction import MIN_AREA_SHARE, measure_mask


def blob(shape, *boxes):
    mask = np.zeros(shape, np.bool_)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_statistics_equal_scipys(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(5, 90, 2))
    probability = ndimage.gaussian_filter(rng.random(shape), 3).astype(np.float32)
    mask = probability > np.quantile(probability, 0.8)
    found = measure_mask(mask, probability)
    y, x = ndimage.center_of_mass(mask)
    assert found.centre == pytest.approx((x, y))
    assert found.area == mask.sum()
    assert found.share == pytest.approx(mask.mean())
    assert found.confidence == pytest.approx(probability[mask].mean(dtype=np.float64), rel=1e-5)
    labels, n = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    assert found.has_several_lesions == (np.sum(areas >= MIN_AREA_SHARE * areas.max()) > 1)
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = True
    assert found.touches_border == bool((mask & ~inner).any())
    assert not found.is_empty


def test_empty_mask():
    found = measure_mask(np.zeros((4, 6), np.bool_), np.full((4, 6), 0.3, np.float32))
    assert found.is_empty
    assert (found.area, found.share, found.centre, found.confidence) == (0, 0.0, None, None)
    assert not found.touches_border and not found.has_several_lesions


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5)])
def test_full_mask(shape):
    found = measure_mask(np.ones(shape, np.bool_), np.ones(shape, np.float32))
    assert found.centre == ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    assert (found.share, found.confidence) == (1.0, 1.0)
    assert found.touches_border and not found.has_several_lesions


@pytest.mark.parametrize(
    ("second", "has_several_lesions"), [((0, 1, 0, 9), False), ((0, 1, 0, 10), True), (None, False)]
)
def test_small_components_are_not_lesions(second, has_several_lesions):
    """Beside a component of 100 pixels, 9 pixels do not count and 10 do."""
    boxes = [(5, 15, 5, 15), *([second] if second else [])]
    mask = blob((20, 30), *boxes)
    assert measure_mask(mask, mask.astype(np.float32)).has_several_lesions is has_several_lesions


@pytest.mark.parametrize(
    ("box", "touches"),
    [
        ((0, 3, 2, 4), True),
        ((7, 10, 2, 4), True),
        ((3, 5, 0, 2), True),
        ((3, 5, 10, 12), True),
        ((1, 9, 1, 11), False),
    ],
)
def test_touches_border_at_each_edge(box, touches):
    mask = blob((10, 12), box)
    assert measure_mask(mask, mask.astype(np.float32)).touches_border is touches
