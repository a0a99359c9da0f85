"""The losses of overlap against smp, scikit-learn, NumPy and cases by hand."""

import itertools

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, matthews_corrcoef

from lesionseg.losses import build_loss
from lesionseg.space import ComponentConfig
from tests.lesionseg.losses.test_contract import value_and_gradient
from tests.lesionseg.losses.test_pixel import drawn, seeds

weights = st.floats(0.1, 0.9)


def sure(rows):
    """Logits that are as good as the given 0 and 1, one image a row."""
    return (torch.tensor(rows, dtype=torch.float32) * 2 - 1).reshape(len(rows), 1, 1, -1) * 40


def masks(rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 1, 1, -1)


def each(theirs, logits, target):
    """The mean over images of a loss that pools."""
    return np.mean([float(theirs(x[None], t[None])) for x, t in zip(logits, target, strict=True)])


def agrees(name, params, theirs, seed):
    """Per image and pooled, with hard and soft targets; ``theirs`` pools."""
    logits, target = drawn(seed)
    for t in (target, target * 0.8 + 0.1):
        image = build_loss(ComponentConfig(name, params))(logits, t)
        pooled = build_loss(ComponentConfig(name, params), overlap="batch")(logits, t)
        assert float(image) == pytest.approx(each(theirs, logits, t), rel=1e-4)
        assert float(pooled) == pytest.approx(float(theirs(logits, t)), rel=1e-4)


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_dice_and_jaccard_equal_smps(seed):
    agrees("dice", {}, smp.losses.DiceLoss(mode="binary", smooth=0.5), seed)
    agrees("jaccard", {}, smp.losses.JaccardLoss(mode="binary", smooth=0.5), seed)


@given(seeds, weights, weights, st.floats(1.0, 3.0))
@settings(max_examples=10, deadline=None)
def test_tversky_losses_equal_smps(seed, alpha, beta, gamma):
    shape = {"alpha": alpha, "beta": beta}
    theirs = smp.losses.TverskyLoss(mode="binary", smooth=0.5, **shape)
    agrees("tversky", shape, theirs, seed)
    theirs = smp.losses.TverskyLoss(mode="binary", smooth=0.5, gamma=1 / gamma, **shape)
    agrees("focal_tversky", {**shape, "gamma": gamma}, theirs, seed)


@pytest.mark.parametrize(
    ("predicted", "truth", "dice"),
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
def test_dice_by_hand(predicted, truth, dice):
    value = build_loss(ComponentConfig("dice"))(sure([predicted]), masks([truth]))
    assert float(value) == pytest.approx(dice, abs=1e-6)


def test_dice_per_image_or_pooled():
    truth, predicted = masks([[1, 1, 0, 0], [1, 1, 1, 1]]), sure([[1, 0, 0, 0], [1, 1, 1, 1]])
    # First image: 1 - (2 x 1 + 1) / (1 + 2 + 1) = 1/4; second: 1 - (2 x 4 + 1) / (8 + 1) = 0.
    assert float(build_loss(ComponentConfig("dice"))(predicted, truth)) == pytest.approx(
        (1 / 4 + 0) / 2
    )
    pooled = build_loss(ComponentConfig("dice"), overlap="batch")(predicted, truth)
    assert float(pooled) == pytest.approx(1 - (2 * 5 + 1) / (5 + 6 + 1))


def test_tversky_by_hand_alpha_weighs_false_positives():
    shape = {"alpha": 0.2, "beta": 0.8}
    loss, root = (
        build_loss(ComponentConfig(name, {**shape, **more}))
        for name, more in (("tversky", {}), ("focal_tversky", {"gamma": 2.0}))
    )
    surplus = sure([[1, 1, 1, 0]]), masks([[1, 0, 0, 0]])  # tp 1, fp 2: 0.4 / (1 + 0.4 + 0.5)
    missing = sure([[1, 0, 0, 0]]), masks([[1, 1, 1, 0]])  # tp 1, fn 2: 1.6 / (1 + 1.6 + 0.5)
    assert float(loss(*surplus)) == pytest.approx(0.4 / 1.9)
    assert float(loss(*missing)) == pytest.approx(1.6 / 3.1)
    assert float(root(*missing)) == pytest.approx((1.6 / 3.1) ** 0.5)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_confident_masks_score_as_in_scikit_learn(seed):
    """SMOOTH is half a pixel, which Dice doubles."""
    logits, target = drawn(seed)
    truth = target[0].flatten().int().tolist()
    predicted = (logits[0] > 0).flatten().int().tolist()
    for name, score, extra in (
        ("dice", f1_score, [1]),
        ("jaccard", jaccard_score, [1]),
        ("mcc", matthews_corrcoef, [1, 0]),
    ):
        value = float(build_loss(ComponentConfig(name))(sure([predicted]), masks([truth])))
        assert value == pytest.approx(1 - score(truth * 2 + extra, predicted * 2 + extra), abs=1e-5)


@given(seeds)
@settings(max_examples=5, deadline=None)
def test_mcc_equals_smps_for_large_images(seed):
    logits, target = drawn(seed)
    logits, target = (x.repeat(1, 1, 64, 64) for x in (logits, target))
    theirs = smp.losses.MCCLoss()
    expected = each(lambda x, t: theirs(x.sigmoid(), t), logits, target)
    assert float(build_loss(ComponentConfig("mcc"))(logits, target)) == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
        # tp 0.5, fp 1, fn 0, tn 3.5: 0.5 x 3.5 / sqrt(1.5 x 0.5 x 4.5 x 3.5)
        ([1, 0, 0, 0], [0, 0, 0, 0], 1 - 1.75 / (1.5 * 0.5 * 4.5 * 3.5) ** 0.5),
        # tp 1.5, fp 1, fn 1, tn 1.5: (2.25 - 1) / 2.5^2
        ([1, 1, 0, 0], [0, 1, 1, 0], 1 - 1.25 / 6.25),
        # tp 0.5, fp 2, fn 2, tn 0.5: (0.25 - 4) / 2.5^2
        ([1, 1, 0, 0], [0, 0, 1, 1], 1 + 3.75 / 6.25),
    ],
)
def test_mcc_by_hand(predicted, truth, expected):
    value = build_loss(ComponentConfig("mcc"))(sure([predicted]), masks([truth]))
    assert float(value) == pytest.approx(expected, abs=1e-6)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_lovasz_equals_smps_in_value_and_gradient(seed):
    logits, target = drawn(seed)
    target[3] = 0
    for overlap, per_image in (("image", True), ("batch", False)):
        theirs = smp.losses.LovaszLoss("binary", per_image=per_image)
        expected, slope = value_and_gradient(theirs, logits, target)
        value, grad = value_and_gradient(
            build_loss(ComponentConfig("lovasz"), overlap=overlap), logits, target
        )
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad, slope, rtol=1e-4, atol=1e-6)


def test_lovasz_by_hand():
    # Hinges: lesion at 3 and -1, skin at 0 and -2, so 0, 2, 1, 0; the worst pixel first, Jaccard
    # falls to 1/2, then to 1/3, 0 and 0: the steps are 1/2, 1/6, ...
    value = build_loss(ComponentConfig("lovasz"))(masks([[3, -1, 0, -2]]), masks([[1, 1, 0, 0]]))
    assert float(value) == pytest.approx(2 * (1 / 2) + 1 * (1 / 6))


@given(st.lists(st.booleans(), min_size=1, max_size=6), seeds)
@settings(max_examples=10, deadline=None)
def test_lovasz_equals_the_jaccard_loss_for_binary_errors(truth, seed):
    wrong = np.random.default_rng(seed).random(len(truth)) < 0.5
    truth = np.array(truth)
    predicted = truth ^ wrong
    union = (predicted | truth).sum()
    jaccard = 1 - (predicted & truth).sum() / union if union else 0.0
    x = np.where(wrong, 0.0, np.where(truth, 1.0, -1.0))  # hinges of 1 and of 0
    value = build_loss(ComponentConfig("lovasz"))(masks([x.tolist()]), masks([truth.tolist()]))
    assert float(value) == pytest.approx(jaccard, abs=1e-6)


def test_lovasz_of_a_million_pixels_is_accurate():
    target = torch.zeros(1, 1, 1024, 1024)
    target[..., :500, :500] = 1
    logits = torch.zeros_like(target).requires_grad_()
    build_loss(ComponentConfig("lovasz"))(logits, target).backward()
    # All hinges are 1 and the steps add up to 1; each pulls its pixel to its side.
    assert (logits.grad * (1 - 2 * target) > 0).all()
    assert float(logits.grad.abs().double().sum()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal_tversky", "mcc"])
def test_soft_target_is_the_optimum(name):
    """The product of the papers would be best at 0 or 1 instead."""
    loss = build_loss(ComponentConfig(name))
    target = masks([[0.9, 0.7, 0.3, 0.1]])
    best = float(loss(target.logit(), target))
    assert best < 0.01
    for moved, step in itertools.product(range(4), (-0.5, 0.5)):
        logits = target.logit()
        logits[..., moved] += step
        assert float(loss(logits, target)) > best


def test_lovasz_of_a_half_target_is_symmetric():
    _, grad = value_and_gradient(
        build_loss(ComponentConfig("lovasz")), masks([[0, 0]]), masks([[0.5, 0.5]])
    )
    assert not grad.any()
    _, grad = value_and_gradient(
        build_loss(ComponentConfig("lovasz")), masks([[5]]), masks([[0.9]])
    )
    assert grad.item() > 0  # surer than its target


def test_counts_of_a_large_batch_are_not_negative():
    """Differences of rounded sums over 8 million pixels could be negative."""
    target, n = torch.ones(2, 1, 2048, 2048), 2 * 2048**2
    logits = torch.full_like(target, 9.0)
    missed = n * float(torch.sigmoid(torch.tensor(-9.0, dtype=torch.float64)))
    # In a full mask fp = tn = 0: MCC is tp tn / sqrt(tp (tp + fn) tn (tn + fn)) with 1/2 more.
    mcc = ((n - missed + 0.5) * 0.5 / ((n + 0.5) * (missed + 0.5))) ** 0.5
    for name, expected in (("mcc", 1 - mcc), ("dice", missed / 2 / (n - missed / 2 + 0.5))):
        value = build_loss(ComponentConfig(name), overlap="batch")(logits, target)
        assert float(value) == pytest.approx(expected, rel=1e-3)
