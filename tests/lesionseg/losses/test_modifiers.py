"""Smoothing, several outputs and flooding, by hand and together."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from lesionseg.losses import LOSSES, Criterion, build_loss
from lesionseg.space import ComponentConfig
from tests.lesionseg.losses.test_contract import batch, value_and_gradient


def mean_of_logits(logits, target):
    """A loss that is easy by hand; its gradient is 1 / pixels everywhere."""
    return logits.float().mean()


def filled(value):
    return torch.full((1, 1, 2, 2), float(value))


def test_smoothing_by_hand():
    seen = []

    def loss(logits, target):
        seen.append(target)
        return logits.mean()

    masks = torch.tensor([0.0, 1.0, 0.5, 0.25]).reshape(1, 1, 2, 2)
    Criterion(loss, label_smoothing=0.2)(filled(0), masks)
    assert seen[0].flatten().tolist() == pytest.approx([0.1, 0.9, 0.5, 0.3])
    Criterion(loss)(filled(0), masks)
    assert torch.equal(seen[1], masks)


def test_smoothed_cross_entropy_by_hand():
    # p = 3/4, t = 1 smoothed to 0.9.
    value = build_loss(ComponentConfig("bce"), label_smoothing=0.2)(filled(math.log(3)), filled(1))
    assert float(value) == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_modifiers_apply_to_every_loss():
    logits, masks = batch()
    for name, level in itertools.product(LOSSES, (0.01, 50.0)):
        smoothed = build_loss(ComponentConfig(name))(logits, masks * 0.8 + 0.1)
        flooded = build_loss(ComponentConfig(name), label_smoothing=0.2, flooding=level)(
            logits, masks
        )
        torch.testing.assert_close(flooded, (smoothed - level).abs() + level)
        assert flooded.dtype == torch.float32


@pytest.mark.parametrize(("value", "flooded"), [(0.7, 0.7), (0.1, 0.5), (0.3, 0.3), (-0.2, 0.8)])
def test_flooding_by_hand(value, flooded):
    found = Criterion(mean_of_logits, flooding=0.3)(filled(value), filled(0))
    assert float(found) == pytest.approx(flooded)


def test_gradient_is_reversed_below_the_flood_level():
    logits, masks = batch()
    for name in LOSSES:
        value, slope = value_and_gradient(build_loss(ComponentConfig(name)), logits, masks)
        below = build_loss(ComponentConfig(name), flooding=float(value) * 1.1)
        above = build_loss(ComponentConfig(name), flooding=float(value) * 0.9)
        assert torch.equal(value_and_gradient(below, logits, masks)[1], -slope)
        assert torch.equal(value_and_gradient(above, logits, masks)[1], slope)


def test_negative_loss_without_flooding():
    assert float(Criterion(mean_of_logits)(filled(-0.2), filled(0))) == pytest.approx(-0.2)


def test_output_weights_halve():
    outputs = (filled(1), filled(2), filled(4))
    # (1 x 1 + 2 / 2 + 4 / 4) / (1 + 1/2 + 1/4) = 3 / 1.75
    assert float(Criterion(mean_of_logits)(outputs, filled(0))) == pytest.approx(3 / 1.75)
    two = Criterion(mean_of_logits)(outputs[:2], filled(0))
    assert float(two) == pytest.approx((1 * 2 + 2 * 1) / 3)


def test_single_output_is_unweighted():
    logits, masks = batch()
    loss = build_loss(ComponentConfig("bce_dice"))
    expected = loss.loss(logits, masks)
    assert loss(logits, masks) == expected == loss((logits,), masks)


def test_equal_outputs_give_one_loss_and_gradients():
    logits, masks = batch()
    loss = build_loss(ComponentConfig("dice"))
    outputs = tuple(logits.clone().requires_grad_() for _ in range(3))
    value = loss(outputs, masks)
    torch.testing.assert_close(value.detach(), loss(logits, masks))
    value.backward()
    _, slope = value_and_gradient(loss, logits, masks)
    for output, weight in zip(outputs, (4 / 7, 2 / 7, 1 / 7), strict=True):
        torch.testing.assert_close(output.grad, slope * weight)


def test_flooding_applies_to_the_sum_of_outputs():
    outputs = (filled(0.8), filled(0.2))  # (2 x 0.8 + 0.2) / 3 = 0.6, over the flood
    value = Criterion(mean_of_logits, flooding=0.5)(outputs, filled(0))
    assert float(value) == pytest.approx(0.6)  # flooded each: (2 x 0.8 + 0.8) / 3 = 0.8


def test_half_precision_outputs_are_summed_in_float32():
    logits, masks = batch()
    outputs = (logits.half(), logits.half() / 2)
    value = build_loss(ComponentConfig("bce"), label_smoothing=0.1, flooding=0.1)(
        outputs, masks.half()
    )
    targets = masks.half().float() * 0.9 + 0.05
    first, second = (F.binary_cross_entropy_with_logits(o.float(), targets) for o in outputs)
    torch.testing.assert_close(value, (2 * first + second) / 3)
