"""The contract of every row of LOSSES, at its defaults and at the corners of its parameters."""

import itertools

import pytest
import torch

from lesionseg.errors import InputError
from lesionseg.losses import LOSSES, build_loss
from lesionseg.space import ComponentConfig

OVERLAPS = ("image", "batch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

every_row = pytest.mark.parametrize("name", list(LOSSES))


def variants(name):
    """The loss with its defaults and with all parameters low or high, pooled and not."""
    space = LOSSES[name].space
    corners = list(itertools.product(*(d.extremes() for d in space.values())))
    components = [{}, *(dict(zip(space, c, strict=True)) for c in {corners[0], corners[-1]})]
    for params, overlap in itertools.product(components, OVERLAPS):
        yield build_loss(ComponentConfig(name, params), overlap=overlap)


def disc(row, column, radius, size=24):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - row) ** 2 + (x - column) ** 2 <= radius**2).float().expand(1, 1, -1, -1)


def said(mask, confidence=4.0):
    """Logits that mean this mask."""
    return (2 * mask - 1) * confidence


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
    assert value.isfinite() and logits.grad.isfinite().all()
    return value.detach(), logits.grad


def test_the_rows_stand_in_this_order():
    pixels_and_dice = ["bce", "dice", "jaccard", "focal", "bce_dice", "focal_dice"]
    others = ["tversky", "focal_tversky", "lovasz", "mcc", "boundary", "hausdorff"]
    assert list(LOSSES) == pixels_and_dice + others


@every_row
def test_it_gives_one_number_in_float32_and_changes_nothing(name):
    logits, target = batch()
    before = logits.clone(), target.clone()
    for loss in variants(name):
        value = loss(logits, target)
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])


@every_row
def test_a_better_mask_has_a_lower_loss(name):
    truth = disc(12, 11, 6)
    good, bad = disc(13, 12, 6), disc(18, 17, 4)
    for loss, confidence in itertools.product(variants(name), (1.0, 4.0)):
        values = [float(loss(said(m, confidence), truth)) for m in (truth, good, bad, 1 - truth)]
        assert values == sorted(values) and len(set(values)) == 4, values
        assert values[0] >= 0


@every_row
def test_it_falls_on_the_way_to_the_truth(name):
    start, target = batch()
    way = [torch.lerp(start, said(target, 8.0), t) for t in torch.linspace(0, 1, 9)]
    for loss in variants(name):
        values = [float(loss(logits, target)) for logits in way]
        assert values[0] / 4 > values[-1] >= 0
        # Distances from a predicted mask are small in noise and grow as it is cleaned.
        if name != "hausdorff":
            assert values == sorted(values, reverse=True)


@every_row
def test_a_step_against_its_gradient_lowers_it(name):
    logits, target = batch(5)
    for loss in variants(name):
        value, grad = value_and_gradient(loss, logits, target)
        assert loss(logits - 0.05 * grad / grad.norm(), target) < value


@every_row
def test_an_empty_or_full_mask_still_teaches(name):
    logits, _ = batch()
    for loss, full in itertools.product(variants(name), (False, True)):
        _, grad = value_and_gradient(loss, logits, torch.full_like(logits, float(full)))
        # Towards the mask: down where there is no lesion, up where all is lesion.
        towards = grad if not full else -grad
        assert (towards >= 0).all() and (towards > 0).any()


@every_row
def test_one_pixel_of_lesion_is_enough(name):
    for loss, shape in itertools.product(variants(name), [(8, 8), (1, 1), (1, 6), (6, 1)]):
        target = torch.zeros(2, 1, *shape)
        target[0, 0, -1, -1] = 1
        _, grad = value_and_gradient(loss, torch.zeros(2, 1, *shape), target)
        assert grad[0, 0, -1, -1] < 0


@every_row
def test_sure_logits_stay_finite_right_or_wrong(name):
    """Beyond about 17 the sigmoid is exactly 1 in float32: powers and logarithms break there."""
    _, target = batch()
    for loss, dtype, size in itertools.product(variants(name), DTYPES, (17.0, 90.0, 1e4, 6e4)):
        right, _ = value_and_gradient(loss, said(target, size).to(dtype), target)
        wrong, _ = value_and_gradient(loss, said(target, -size).to(dtype), target)
        assert right < wrong


@every_row
def test_half_precision_is_judged_in_single(name):
    logits, target = batch()
    for loss, dtype in itertools.product(variants(name), DTYPES[1:]):
        rounded = logits.to(dtype)
        value, grad = value_and_gradient(loss, rounded, target)
        assert value.dtype == torch.float32 and grad.dtype == dtype
        assert value == loss(rounded.float(), target) == loss(rounded, target.to(dtype))


@every_row
def test_soft_targets_are_taken(name):
    logits, hard = batch()
    for loss, spread, size in itertools.product(variants(name), (0, 0.8), (1.0, 17.0, 1e4)):
        target = 0.5 + (hard - 0.5) * spread
        value, _ = value_and_gradient(loss, logits * size, target)
        assert value >= 0
        assert spread == 0 or loss(said(hard), target) < loss(said(1 - hard), target)


def test_the_order_of_the_images_makes_no_difference():
    logits, target = batch()
    for loss in (loss for name in LOSSES for loss in variants(name)):
        turned = loss(logits[[2, 0, 1]], target[[2, 0, 1]])
        torch.testing.assert_close(turned, loss(logits, target))


def test_per_image_the_loss_of_a_batch_is_the_mean_over_its_images():
    logits, target = batch()
    for name in LOSSES:
        loss = build_loss(ComponentConfig(name))
        alone = [loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))]
        torch.testing.assert_close(loss(logits, target), torch.stack(alone).mean())


def test_a_batch_of_one_is_the_same_per_image_and_pooled():
    logits, target = batch()
    for name in LOSSES:
        image, pooled = (build_loss(ComponentConfig(name), overlap=o) for o in OVERLAPS)
        torch.testing.assert_close(image(logits[:1], target[:1]), pooled(logits[:1], target[:1]))


def test_pooling_counts_the_batch_as_one_image():
    logits, target = batch()
    for name in LOSSES:
        image, pooled = (
            build_loss(ComponentConfig(name), overlap=o)(logits, target) for o in OVERLAPS
        )
        assert (name in {"bce", "focal"}) == torch.isclose(image, pooled), name
        if name not in {"boundary", "hausdorff"}:  # their distances know which pixel lies where
            line = logits.reshape(1, 1, 1, -1), target.reshape(1, 1, 1, -1)
            torch.testing.assert_close(pooled, build_loss(ComponentConfig(name))(*line))


def test_unknown_entry_is_refused():
    with pytest.raises(InputError, match=r"^unknown loss 'dise' \(did you mean 'dice'\?\)$"):
        build_loss(ComponentConfig("dise"))
    with pytest.raises(InputError, match=r"^loss\.focal: gamma must lie in \[0\.5, 4\], got 5$"):
        build_loss(ComponentConfig("focal", {"gamma": 5}))
