"""The losses of pixels against scikit-learn, torchvision and sums by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torchvision.ops import sigmoid_focal_loss

from lesionseg.losses import LOSSES, build_loss
from lesionseg.space import ComponentConfig
from tests.lesionseg.losses.test_contract import value_and_gradient

seeds = st.integers(0, 10_000)


def drawn(seed):
    """Random logits and masks that are neither empty nor full."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 1, 6, 5, generator=generator) * 3
    target = (torch.rand(4, 1, 6, 5, generator=generator) < 0.4).float()
    target[:, :, 0, 0], target[:, :, 0, 1] = 1, 0
    return logits, target


@given(seeds, st.floats(0.1, 20.0))
@settings(max_examples=10, deadline=None)
def test_cross_entropy_equals_scikit_learns(seed, pos_weight):
    logits, target = drawn(seed)
    truth, p = target.flatten().numpy(), logits.double().sigmoid().flatten().numpy()
    weights = 1 + (pos_weight - 1) * truth
    # Theirs divides by the sum of the weights, ours by the number of pixels.
    expected = log_loss(truth, p, sample_weight=weights) * weights.mean()
    loss = build_loss(ComponentConfig("bce", {"pos_weight": pos_weight}))
    assert float(loss(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_a_soft_target_by_hand():
    # p = 3/4 against t = 1/2: -(ln 3/4 + ln 1/4) / 2; with pos_weight 2 the first term doubles.
    logits, target = torch.full((1, 1, 2, 2), math.log(3)), torch.full((1, 1, 2, 2), 0.5)
    plain = build_loss(ComponentConfig("bce"))(logits, target)
    weighted = build_loss(ComponentConfig("bce", {"pos_weight": 2.0}))(logits, target)
    assert float(plain) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert float(weighted) == pytest.approx(-(2 * math.log(3 / 4) + math.log(1 / 4)) / 2)


def test_pos_weight_is_fixed_by_default():
    assert LOSSES["bce"].fixed_by_default == {"pos_weight"}


@given(seeds, st.floats(0.5, 4.0), st.floats(0.1, 0.9))
@settings(max_examples=10, deadline=None)
def test_focal_equals_torchvisions(seed, gamma, alpha):
    logits, target = drawn(seed)

    def theirs(logits, target):
        return sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="mean")

    ours = build_loss(ComponentConfig("focal", {"gamma": gamma, "alpha": alpha}))
    # In double precision, where torchvision's powers are still exact.
    expected, slope = value_and_gradient(theirs, logits.double(), target.double())
    value, grad = value_and_gradient(ours, logits, target)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-3, atol=1e-7)


@given(seeds, st.floats(0.1, 0.9))
@settings(max_examples=5, deadline=None)
def test_focal_loss_of_a_soft_target_is_interpolated(seed, t):
    logits, target = drawn(seed)
    loss = build_loss(ComponentConfig("focal"))
    ones = torch.ones_like(target)
    expected = t * loss(logits, ones) + (1 - t) * loss(logits, 0 * ones)
    torch.testing.assert_close(loss(logits, t * ones), expected)


@given(seeds, st.floats(0.1, 0.9))
@settings(max_examples=5, deadline=None)
def test_sums_with_dice_are_weighted(seed, weight):
    logits, target = drawn(seed)
    dice = build_loss(ComponentConfig("dice"))(logits, target)
    for name, extra in (("bce", {}), ("focal", {"gamma": 1.5, "alpha": 0.3})):
        pixels = build_loss(ComponentConfig(name, extra))(logits, target)
        both = build_loss(ComponentConfig(f"{name}_dice", {**extra, "weight": weight}))(
            logits, target
        )
        torch.testing.assert_close(both, weight * pixels + (1 - weight) * dice)
