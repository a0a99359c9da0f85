"""The losses of distance against brute force, SciPy and MONAI."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from lesionseg.losses import build_loss, distance
from lesionseg.losses.distance import UNIT, opencv_distance, signed_distance, torch_distance
from lesionseg.space import ComponentConfig
from tests.lesionseg.losses.test_contract import disc, said, value_and_gradient
from tests.lesionseg.losses.test_pixel import drawn, seeds


def unit(h, w):
    return UNIT * np.hypot(h, w)


def theirs_signed(masks):
    """SciPy's transform of masks with both sides, in units."""
    h, w = masks.shape[-2:]
    return np.stack(
        [distance_transform_edt(~m[0]) - distance_transform_edt(m[0]) for m in masks.numpy()]
    )[:, None] / unit(h, w)


def alone(name, logits, target, **params):
    """The distance part of a weighted sum, taken from two of its weights."""
    low, high = (
        build_loss(ComponentConfig(name, {**params, "weight": w}))(logits, target).double()
        for w in (0.1, 0.9)
    )
    return float(high + (high - low) / 8)


def test_distances_of_three_pixels_by_hand():
    found = signed_distance(torch.tensor([[[[True, False, False, False]]]]))
    expected = np.array([-1, 1, 2, 3]) / (0.1 * np.hypot(1, 4))
    assert found.flatten().tolist() == pytest.approx(expected)


@given(st.integers(1, 7), st.integers(1, 7), seeds)
@settings(max_examples=10, deadline=None)
def test_distances_equal_brute_force(h, w, seed):
    lesion = np.random.default_rng(seed).random((h, w)) < 0.5
    found = signed_distance(torch.from_numpy(lesion)[None, None])[0, 0].numpy()
    if lesion.all() or not lesion.any():
        assert not found.any()
        return
    for row, column in np.ndindex(h, w):
        others = np.argwhere(lesion != lesion[row, column])
        nearest = np.hypot(*(others - (row, column)).T).min()
        sign = -1 if lesion[row, column] else 1
        assert found[row, column] == pytest.approx(sign * nearest / unit(h, w), rel=1e-5)


def test_distances_equal_scipys():
    masks = torch.cat([disc(20, 25, 9, size=64), disc(40, 30, 20, size=64)]) > 0.5
    found = signed_distance(masks)
    assert found.dtype == torch.float32 and found.shape == masks.shape
    np.testing.assert_allclose(found.numpy(), theirs_signed(masks), rtol=1e-5)


@pytest.mark.parametrize("max_values", [2**24, 40])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (33, 48), (128, 128)])
def test_torchs_distances_equal_opencvs_and_scipys(monkeypatch, shape, max_values):
    """Scattered pixels, a block, empty and full masks; whole and in chunks of rows."""
    monkeypatch.setattr(distance, "MAX_VALUES", max_values)
    (h, w), rng = shape, np.random.default_rng(0)
    masks = [rng.random(shape) < share for share in (0.5, 0.01, 0.99, 0.001, -1, 2)]
    masks.append(np.zeros(shape, np.bool_))
    masks[-1][h // 4 : h // 2 + 1, w // 3 : w // 2 + 1] = True
    lesions = torch.from_numpy(np.stack(masks))
    found = torch_distance(lesions)
    assert found.dtype == torch.float32
    assert (found - opencv_distance(lesions)).abs().max() < 1e-4
    for mask, distances in zip(masks, found.numpy(), strict=True):
        if mask.all() or not mask.any():
            assert not distances.any()
        else:
            expected = distance_transform_edt(~mask) - distance_transform_edt(mask)
            np.testing.assert_allclose(distances, expected, atol=1e-4)


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_boundary_loss_equals_numpys(seed):
    logits, target = drawn(seed)
    p, g = logits.double().sigmoid().numpy(), target.double().numpy()
    # Never below 0, since every wrong pixel costs its distance.
    expected = (np.abs(theirs_signed(target > 0.5)) * np.abs(p - g)).mean()
    assert alone("boundary", logits, target) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_boundary_loss_gradient_equals_the_papers(seed):
    """The gradient of the mean of distance x probability."""
    logits, target = drawn(seed)

    def ours(x, t):
        losses = [build_loss(ComponentConfig("boundary", {"weight": w}))(x, t) for w in (0.1, 0.9)]
        return losses[1] + (losses[1] - losses[0]) / 8

    field = torch.from_numpy(theirs_signed(target > 0.5)).float()
    _, expected = value_and_gradient(lambda x, _: (field * x.sigmoid()).mean(), logits, target)
    _, grad = value_and_gradient(ours, logits, target)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


@given(seeds, st.floats(1.0, 3.0))
@settings(max_examples=5, deadline=None)
def test_hausdorff_loss_equals_monais(seed, alpha):
    from monai.losses import HausdorffDTLoss

    logits, target = drawn(seed)
    target[3] = 0
    theirs = HausdorffDTLoss(alpha=alpha, include_background=True, sigmoid=True)
    for t in (target, target * 0.8 + 0.1):
        expected = float(theirs(logits, t)) / unit(*logits.shape[-2:]) ** alpha
        assert alone("hausdorff", logits, t, alpha=alpha) == pytest.approx(expected, rel=1e-3)


def test_the_hausdorff_loss_by_hand():
    # One pixel of four is lesion; all are predicted as skin with p = 1/4, without a boundary.
    # Distances 1 1 2 3; errors 9/16, then 1/16 each.
    logits, target = torch.full((1, 1, 1, 4), -np.log(3)), torch.tensor([[[[1.0, 0, 0, 0]]]])
    expected = (9 + 1 + 4 + 9) / 16 / 4 / unit(1, 4) ** 2
    assert alone("hausdorff", logits, target, alpha=2.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
def test_loss_does_not_depend_on_the_image_size(name):
    small = disc(30, 32, 16, size=64), disc(34, 40, 14, size=64)
    large = disc(120, 128, 64, size=256), disc(136, 160, 56, size=256)
    values = [alone(name, said(predicted), truth) for truth, predicted in (small, large)]
    assert values[0] == pytest.approx(values[1], rel=0.15)


@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
def test_distant_errors_cost_more(name):
    truth = disc(16, 16, 5, size=48)
    near, far = truth.clone(), truth.clone()
    near[0, 0, 16, 23:26], far[0, 0, 16, 43:46] = 1, 1
    costs = [alone(name, said(m), truth) for m in (truth, near, far)]
    assert costs == sorted(costs)
    assert costs[2] - costs[0] > 3 * (costs[1] - costs[0])


@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
def test_without_boundary_only_dice_has_a_gradient(name):
    logits, truth = torch.full((1, 1, 8, 8), -1.0), torch.zeros(1, 1, 8, 8)
    assert alone(name, logits, truth) == pytest.approx(0, abs=1e-6)
    value, grad = value_and_gradient(build_loss(ComponentConfig(name)), logits, truth)
    assert value > 0 and (grad > 0).all()


@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
def test_distance_and_dice_losses_are_of_one_order(name):
    """For an untrained network."""
    truth = disc(30, 34, 14, size=64)
    logits = torch.zeros_like(truth)
    dice = float(build_loss(ComponentConfig("dice"))(logits, truth))
    params = [{}] if name == "boundary" else [{"alpha": a} for a in (1.0, 2.0, 3.0)]
    for more in params:
        assert 1 / 3 < alone(name, logits, truth, **more) / dice < 3
