"""Changes of place: which symmetries occur and how often, angles, and the elastic change."""

from collections import Counter

import albumentations as A
import cv2
import numpy as np
import pytest

from lesionseg.augment import build_augment
from lesionseg.augment.geometry import CoarseElastic, turn, warp
from lesionseg.space import ComponentConfig

from .samples import noise, results


def turned(array):
    """The eight symmetries of a square picture."""
    return [np.rot90(a, k) for a in (array, array[:, ::-1]) for k in range(4)]


def which(image, mask, changed, changed_mask):
    """Return the symmetry, if any, that was applied to the pair."""
    found = [i for i, t in enumerate(turned(image)) if np.array_equal(t, changed)]
    assert all(np.array_equal(turned(mask)[i], changed_mask) for i in found)
    return found[0] if found else None


def test_flips_give_the_four_mirror_images_about_equally_often():
    image, mask = noise(16)
    pairs = results(build_augment(ComponentConfig("flips")), image, mask, 400)
    seen = Counter(which(image, mask, *pair) for pair in pairs)
    # As it is, half a turn, mirrored, and both.
    assert set(seen) == {0, 2, 4, 6}
    assert min(seen.values()) > 70  # 100 are expected; fewer than 70 has odds of one in 4000


def test_all_eight_symmetries_are_about_equally_likely():
    image, mask = noise(16)
    pairs = results(A.Compose([A.D4()]), image, mask, 800)
    seen = Counter(which(image, mask, *pair) for pair in pairs)
    assert set(seen) == set(range(8))
    assert min(seen.values()) > 65


@pytest.mark.parametrize("name", ["rotations", "geometric"])
def test_all_eight_symmetries_occur_where_nothing_else_moves(name):
    image, mask = noise(16)
    pairs = results(build_augment(ComponentConfig(name)), image, mask, 400)
    seen = Counter(which(image, mask, *pair) for pair in pairs)
    assert set(seen) == {*range(8), None}


def slope(mask):
    """The angle of a mask's long axis in degrees, in [0, 180)."""
    moments = cv2.moments(mask, binaryImage=True)
    double = np.arctan2(2 * moments["mu11"], moments["mu20"] - moments["mu02"])
    return np.degrees(double / 2) % 180


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_rotations_are_limited_by_the_strength(strength):
    image, mask = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)
    mask[60:68, 40:88] = 1
    pairs = results(A.Compose([turn(strength, p=1.0)]), image, mask, 100)
    angles = np.array([(slope(m) + 90) % 180 - 90 for _, m in pairs])
    limit = 180 * strength
    assert np.abs(angles).max() <= limit + 1
    assert angles.min() < -0.85 * limit and angles.max() > 0.85 * limit


def test_the_warp_zooms_and_shifts_as_far_as_its_strength_allows():
    image, mask = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)
    mask[54:74, 54:74] = 1
    for strength in (0.2, 1.0):
        pairs = list(results(A.Compose([warp(strength, p=1.0)]), image, mask, 150))
        zoom = np.sqrt([m.sum() / 400 for _, m in pairs])
        assert 1 - 0.3 * strength - 0.05 < zoom.min() < 1 - 0.15 * strength
        assert 1 + 0.15 * strength < zoom.max() < 1 + 0.3 * strength + 0.08
        places = np.array([np.argwhere(m).mean(axis=0) for _, m in pairs]) - 63.5
        # A tenth both ways, then turned, zoomed and sheared.
        reach = 0.1 * strength * 128
        assert 0.5 * reach < np.abs(places).max() < 1.42 * (1 + 0.3 * strength) * 1.3 * reach + 2


def test_the_elastic_change_moves_points_by_the_u_net_papers_distance():
    elastic = CoarseElastic(spread=10 / 512, p=1.0)
    elastic.set_random_seed(0)
    moved = []
    for _ in range(60):
        maps = elastic.get_params_dependent_on_data({"shape": (512, 512, 3)}, {})
        moved += [maps["map_x"][256, 256] - 256, maps["map_y"][256, 256] - 256]
    # The grid's middle point is drawn itself: its deviation is that of the paper.
    assert np.std(moved) == pytest.approx(10, rel=0.2)
    assert np.mean(moved) == pytest.approx(0, abs=3)


@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_the_elastic_change_is_smooth_and_never_folds(shape):
    elastic = CoarseElastic(spread=0.04, p=1.0)
    elastic.set_random_seed(1)
    for _ in range(40):
        maps = elastic.get_params_dependent_on_data({"shape": (*shape, 3)}, {})
        x, y = maps["map_x"], maps["map_y"]
        assert x.shape == y.shape == shape and x.dtype == y.dtype == np.float32
        area = np.gradient(x, axis=1) * np.gradient(y, axis=0)
        area -= np.gradient(x, axis=0) * np.gradient(y, axis=1)
        assert area.min() > 0


def test_elastic_change_is_similar_at_every_resolution():
    shifts = []
    for size in (32, 256):
        elastic = CoarseElastic(spread=0.03, p=1.0)
        elastic.set_random_seed(2)
        maps = elastic.get_params_dependent_on_data({"shape": (size, size, 3)}, {})
        shift = (maps["map_x"] - np.arange(size)) / size
        shifts.append(cv2.resize(shift, (16, 16), interpolation=cv2.INTER_AREA))
    assert np.abs(shifts[0] - shifts[1]).max() < 0.003
