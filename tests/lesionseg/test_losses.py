"""The contract of every row of LOSSES, and each of ours against somebody else's."""

import itertools

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torchvision.ops import sigmoid_focal_loss

from lesionseg.errors import InputError
from lesionseg.losses import LOSSES, build_loss
from lesionseg.space import Pick


def corners(name):
    space = LOSSES[name].space
    for values in itertools.product(*(d.corners() for d in space.values())):
        yield Pick(name, dict(zip(space, values, strict=True)))


PICKS = [Pick(name) for name in LOSSES]
PICKS += [p for name in LOSSES for p in corners(name) if p.params]
every_loss = pytest.mark.parametrize(
    "loss", [build_loss(p) for p in PICKS], ids=[f"{p.name}-{dict(p.params)}" for p in PICKS]
)


def batch(seed=0, n=3, size=8):
    """Logits of a network that knows nothing, and masks: one of them empty, one full."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 1, size, size, generator=generator) * 2
    target = (torch.rand(n, 1, size, size, generator=generator) < 0.3).float()
    target[1], target[2] = 0, 1
    return logits, target


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@every_loss
def test_it_gives_one_number_in_float32_and_changes_nothing(loss):
    logits, target = batch()
    before = logits.clone(), target.clone()
    value = loss(logits, target)
    assert value.shape == () and value.dtype == torch.float32
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])


@every_loss
@pytest.mark.parametrize("seed", range(4))
def test_it_falls_all_the_way_towards_the_truth(loss, seed):
    start, target = batch(seed)
    truth = (2 * target - 1) * 8  # surer than any pixel of the start
    values = [float(loss(torch.lerp(start, truth, t), target)) for t in np.linspace(0, 1, 9)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert values[-1] >= 0


@every_loss
def test_a_step_against_its_gradient_lowers_it(loss):
    logits, target = batch(5)
    value, grad = value_and_gradient(loss, logits, target)
    assert loss(logits - 0.1 * grad / grad.norm(), target) < value


@every_loss
@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["empty", "full"])
def test_an_empty_or_full_mask_still_teaches(loss, fill):
    logits, _ = batch()
    value, grad = value_and_gradient(loss, logits, torch.full_like(logits, fill))
    assert value.isfinite() and grad.isfinite().all()
    # Towards the mask: down where there is no lesion, up where all is lesion.
    assert bool((grad > 0).all() if fill == 0 else (grad < 0).all())


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_judged_in_single(loss, dtype):
    logits, target = batch()
    rounded = logits.to(dtype)
    value, grad = value_and_gradient(loss, rounded, target)
    assert value.dtype == torch.float32 and grad.dtype == dtype
    assert value == loss(rounded.float(), target)
    assert grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [17.0, 90.0, 6e4])
@pytest.mark.parametrize("right", [True, False])
def test_sure_logits_stay_finite_right_or_wrong(loss, dtype, size, right):
    """Beyond about 17 the sigmoid is exactly 1 in float32: powers and logarithms break there."""
    _, target = batch()
    logits = ((2 * target - 1) * (size if right else -size)).to(dtype)
    value, grad = value_and_gradient(loss, logits, target)
    assert value.isfinite() and grad.isfinite().all()


@every_loss
def test_the_loss_of_a_batch_is_the_mean_over_its_images(loss):
    logits, target = batch()
    alone = [loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))]
    torch.testing.assert_close(loss(logits, target), torch.stack(alone).mean())


@every_loss
def test_one_pixel_is_enough(loss):
    value, grad = value_and_gradient(loss, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert value > 0 and grad.item() < 0


def sure(rows):
    """Logits that are as good as the given 0 and 1."""
    return (torch.tensor(rows, dtype=torch.float32) * 2 - 1).reshape(len(rows), 1, 1, -1) * 40


def test_dice_is_worked_out_per_image_and_not_pooled():
    truth = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]]).reshape(2, 1, 1, 4)
    predicted = sure([[1, 0, 0, 0], [1, 1, 1, 1]])
    # First image: 1 - (2 x 1 + 1) / (1 + 2 + 1) = 1/4; second: 1 - (2 x 4 + 1) / (8 + 1) = 0.
    # Pooled over both it would be 1 - (2 x 5 + 1) / (5 + 6 + 1) = 1/12.
    loss = build_loss(Pick("dice"))
    assert float(loss(predicted, truth)) == pytest.approx((1 / 4 + 0) / 2)


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),  # 1 - 1 / 1
        ([1, 0, 0, 0], [0, 0, 0, 0], 0.5),  # 1 - 1 / (1 + 1)
        ([1, 1, 1, 1], [0, 0, 0, 0], 0.8),  # 1 - 1 / (4 + 1)
        ([0, 0, 0, 0], [1, 1, 1, 1], 0.8),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.8),
        ([1, 1, 0, 0], [0, 1, 1, 0], 0.4),  # 1 - (2 + 1) / (4 + 1)
    ],
)
def test_dice_by_hand(predicted, truth, expected):
    target = torch.tensor([truth], dtype=torch.float32).reshape(1, 1, 1, 4)
    loss = build_loss(Pick("dice"))
    assert float(loss(sure([predicted]), target)) == pytest.approx(expected, abs=1e-6)


seeds = st.integers(0, 10_000)


def drawn(seed):
    """Random logits and masks that are neither empty nor full."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 1, 6, 5, generator=generator) * 3
    target = (torch.rand(4, 1, 6, 5, generator=generator) < 0.4).float()
    target[:, :, 0, 0], target[:, :, 0, 1] = 1, 0
    return logits, target


def their_bce(logits, target):
    return log_loss(target.flatten().numpy(), logits.double().sigmoid().flatten().numpy())


def their_dice(logits, target):
    # Theirs pools over the batch, hence image by image; it adds its constant to halved sums.
    theirs = smp.losses.DiceLoss(mode="binary", smooth=0.5)
    return np.mean([float(theirs(x[None], t[None])) for x, t in zip(logits, target, strict=True)])


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_cross_entropy_is_scikit_learns_log_loss(seed):
    logits, target = drawn(seed)
    value = float(build_loss(Pick("bce"))(logits, target))
    assert value == pytest.approx(their_bce(logits, target), rel=1e-5)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_dice_is_smps_for_each_image(seed):
    logits, target = drawn(seed)
    value = float(build_loss(Pick("dice"))(logits, target))
    assert value == pytest.approx(their_dice(logits, target), rel=1e-5)


@given(seeds, st.floats(0.5, 4.0), st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_focal_is_torchvisions_value_and_gradient(seed, gamma, alpha):
    logits, target = drawn(seed)

    def theirs(logits, target):
        return sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="mean")

    ours = build_loss(Pick("focal", {"gamma": gamma, "alpha": alpha}))
    # In double precision, where torchvision's powers are still exact.
    expected, slope = value_and_gradient(theirs, logits.double(), target.double())
    value, grad = value_and_gradient(ours, logits, target)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-3, atol=1e-7)


@given(seeds, st.floats(0.1, 0.9))
@settings(max_examples=20, deadline=None)
def test_the_sum_weighs_cross_entropy_against_dice(seed, weight):
    logits, target = drawn(seed)
    value = float(build_loss(Pick("bce_dice", {"weight": weight}))(logits, target))
    expected = weight * their_bce(logits, target) + (1 - weight) * their_dice(logits, target)
    assert value == pytest.approx(expected, rel=1e-5)


def test_a_pick_outside_the_table_is_refused():
    with pytest.raises(InputError, match=r"^unknown loss 'dise' \(did you mean 'dice'\?\)$"):
        build_loss(Pick("dise"))
    with pytest.raises(InputError, match=r"^loss\.focal: gamma must lie in \[0\.5, 4\], got 5$"):
        build_loss(Pick("focal", {"gamma": 5}))
