"""Test-time augmentation: the views, their way back, and what their mean is blind to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lesionseg.inference.tta import SYMMETRIES, TTA, predict_with_ttas

#: The symmetries of the square by hand, on NumPy arrays [..., S, S].
BY_HAND = {
    "itself": lambda a: a,
    "left to right": lambda a: a[..., :, ::-1],
    "upside down": lambda a: a[..., ::-1, :],
    "half turn": lambda a: a[..., ::-1, ::-1],
    "transposed": lambda a: a.swapaxes(-1, -2),
    "quarter turn": lambda a: a.swapaxes(-1, -2)[..., ::-1, :],
    "three quarters": lambda a: a.swapaxes(-1, -2)[..., ::-1],
    "other diagonal": lambda a: a.swapaxes(-1, -2)[..., ::-1, ::-1],
}
NAMES = {
    "none": ["itself"],
    "flips": ["itself", "left to right", "upside down", "half turn"],
    "d4": list(BY_HAND),
}


def predict_with_tta(model, images, name):
    return predict_with_ttas(model, images, [name])[name]


class Pointwise(nn.Module):
    """Each pixel by itself: every symmetry of the square leaves it as it is.

    Its probabilities are 0, 1/2 and 1, whose sums have no rounding.
    """

    def forward(self, x):
        return 200 * (x[:, :1] - 2 * x[:, 1:2] * x[:, 2:]).round().clamp(-1, 1)


class Crooked(nn.Module):
    """Adds a slope that runs down and to the right, and the pixel above."""

    def forward(self, x):
        slope = torch.linspace(-2, 2, x.shape[-1])
        return x[:, :1] + slope + 2 * slope[:, None] + x[:, 1:2].roll(1, dims=-2)


def images(side=9, n=2, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def moved(x, how):
    return torch.from_numpy(BY_HAND[how](x.numpy()).copy())


def test_symmetries_by_hand():
    assert set(TTA) == set(NAMES)


@pytest.mark.parametrize("name", TTA)
def test_views_are_groups(name):
    x = images(4, 1)
    views = {view.apply(x).numpy().tobytes() for view in TTA[name]}
    assert views == {moved(x, how).numpy().tobytes() for how in NAMES[name]}
    assert len(TTA[name]) == len(views)


def test_views_are_inverted_exactly():
    x = images(5)
    for view in SYMMETRIES:
        assert torch.equal(view.undo(view.apply(x)), x), view
        assert torch.equal(view.apply(view.undo(x)), x), view


@pytest.mark.parametrize("name", TTA)
def test_pointwise_network_is_unchanged(name):
    x, model = images(), Pointwise()
    found = predict_with_tta(model, x, name)
    assert found.shape == (2, 1, 9, 9)
    assert found.dtype == torch.float32
    assert found.unique().tolist() == [0.0, 0.5, 1.0]
    assert torch.equal(found, model(x).sigmoid())


@pytest.mark.parametrize("name", TTA)
def test_mean_is_equivariant_under_its_group(name):
    x, model = images(), Crooked()
    mean = predict_with_tta(model, x, name)
    agree = [
        how
        for how in BY_HAND
        if torch.allclose(moved(mean, how), predict_with_tta(model, moved(x, how), name), atol=1e-6)
    ]
    assert agree == NAMES[name]


def test_mean_is_of_probabilities():
    x, model = images(), Crooked()
    views = [moved(model(moved(x, how)).sigmoid(), how) for how in NAMES["flips"]]
    wanted = torch.stack(views).mean(0)
    torch.testing.assert_close(predict_with_tta(model, x, "flips"), wanted)
    logits = torch.stack([moved(model(moved(x, how)), how) for how in NAMES["flips"]])
    assert not torch.allclose(logits.mean(0).sigmoid(), wanted, atol=1e-3)


def test_joint_computation_is_bit_identical():
    x, model = images(), Crooked()
    for names in (("d4", "flips", "none"), ("none", "flips")):
        together = predict_with_ttas(model, x, names)
        assert list(together) == list(names)
        for name in names:
            assert torch.equal(together[name], predict_with_tta(model, x, name))


def test_shared_views_are_computed_once():
    calls = []
    model = Crooked()
    model.register_forward_hook(lambda *_: calls.append(1))
    predict_with_ttas(model, images(), tuple(TTA))
    assert len(calls) == 8


def test_channels_last_and_half_precision_inputs():
    x = images(8)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        predict_with_tta(Crooked(), last, "d4"), predict_with_tta(Crooked(), x, "d4")
    )

    class Half(Crooked):
        def forward(self, x):
            return super().forward(x).bfloat16()

    found = predict_with_tta(Half(), x, "d4")
    assert found.dtype == torch.float32
    assert (found - predict_with_tta(Crooked(), x, "d4")).abs().max() < 0.02


def test_single_pixel_and_empty_batch():
    x = images(1)
    assert torch.equal(predict_with_tta(Pointwise(), x, "d4"), Pointwise()(x).sigmoid())
    assert predict_with_tta(Pointwise(), images(4, 0), "d4").shape == (0, 1, 4, 4)
