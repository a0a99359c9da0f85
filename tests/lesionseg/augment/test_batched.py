"""The batched executor against albumentations: one policy, the same pictures."""

import copy
import pickle

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lesionseg.augment import AUGMENTS, build_augment, reseed
from lesionseg.augment.batched import pixels
from lesionseg.augment.batched.apply import apply_plan
from lesionseg.augment.batched.plan import (
    PackedPlan,
    draw_plan,
    is_batchable,
    pack_plan,
    unpack_plan,
)
from lesionseg.augment.dermoscopy import Hair, HairRemoval
from lesionseg.data.synthetic import render
from lesionseg.space import ComponentConfig

from .samples import noise

SIDE = 64
FULL = build_augment(ComponentConfig("full", {"strength": 1.0}))


@pytest.fixture(scope="module")
def lesions():
    """12 drawn lesions, uint8 [12, 64, 64, 3], and their masks."""
    drawn = [render(i, SIDE, SIDE) for i in range(12)]
    masks = np.stack([(d.mask > 0).astype(np.uint8) for d in drawn])
    return np.stack([d.image for d in drawn]), masks


def on_host(pipeline, images, masks, seed=0):
    reseed(pipeline, seed)
    pairs = [pipeline(image=i, mask=m) for i, m in zip(images, masks, strict=True)]
    return np.stack([p["image"] for p in pairs]), np.stack([p["mask"] for p in pairs])


def batched(pipeline, images, masks, seed=0):
    reseed(pipeline, seed)
    plan = draw_plan(pipeline, len(images), images.shape[1])
    found = apply_plan(plan, torch.from_numpy(images), torch.from_numpy(masks))
    return tuple(t.numpy() for t in found)


def always(transform):
    """The transform alone, for every image."""
    own = copy.deepcopy(transform)
    own.p = 1.0
    return A.Compose([own])


#: Mean difference in grey levels that rounding may make: a quarter; a half where the host cuts off
#: rather than rounds; more where it rounds several times, or holds hues in steps of two degrees.
CLOSE = {"RandomGamma": 0.8, "ColorJitter": 2.5, "CLAHE": 2.0, "HairRemoval": 1.0}


@pytest.mark.parametrize("transform", FULL.transforms, ids=lambda t: type(t).__name__)
def test_every_transform_gives_the_hosts_picture(transform, lesions):
    pipeline, (images, masks) = always(transform), lesions
    for seed in range(2):
        host, host_masks = on_host(pipeline, images, masks, seed)
        ours, our_masks = batched(pipeline, images, masks, seed)
        limit = CLOSE.get(type(transform).__name__, 0.3)
        assert np.abs(host - ours).mean() < limit
        # Far less than what it changes, or nothing was shown; the lesions have few hairs.
        if not isinstance(transform, HairRemoval):
            assert np.abs(host - ours).mean() < 0.2 * np.abs(host.astype(float) - images).mean()
        assert (host_masks != our_masks).mean() < 0.002


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", AUGMENTS)
def test_every_row_gives_the_hosts_pictures(name, strength, lesions):
    params = {"strength": strength} if AUGMENTS[name].space else {}
    pipeline, (images, masks) = build_augment(ComponentConfig(name, params)), lesions
    assert is_batchable(pipeline)
    for seed in range(3):
        host, host_masks = on_host(pipeline, images, masks, seed)
        ours, our_masks = batched(pipeline, images, masks, seed)
        assert np.abs(host - ours).mean() < 4.0
        assert (host_masks != our_masks).sum() < 0.02 * host_masks.sum()


@pytest.mark.parametrize("strength", [0.1, 1.0])
@pytest.mark.parametrize("size", [16, 33, 64])
def test_sizes_and_mask_values_are_kept_and_the_inputs_left_alone(strength, size):
    pipeline = build_augment(ComponentConfig("full", {"strength": strength}))
    image, mask = noise(size)
    images, masks = np.stack([image] * 9), np.stack([mask] * 9)
    before = images.copy(), masks.copy()
    for seed in range(4):
        found, found_masks = batched(pipeline, images, masks, seed)
        assert found.shape == images.shape and found_masks.shape == masks.shape
        assert found_masks.dtype == np.uint8 and set(np.unique(found_masks)) <= {0, 1}
        assert np.isfinite(found).all() and found.min() >= -1e-3 and found.max() <= 255.001
    assert np.array_equal(images, before[0]) and np.array_equal(masks, before[1])


def test_an_image_that_is_only_flipped_keeps_every_pixel():
    image, mask = noise(33)
    images, masks = np.stack([image] * 30), np.stack([mask] * 30)
    pipeline = A.Compose([A.D4()])
    host, host_masks = on_host(pipeline, images, masks)
    ours, our_masks = batched(pipeline, images, masks)
    assert np.array_equal(np.rint(ours), host) and np.array_equal(our_masks, host_masks)
    assert len({h.tobytes() for h in host}) == 8


def test_the_plan_is_the_same_for_the_same_seed_and_small():
    plans = []
    for seed in (3, 3, 4):
        reseed(FULL, seed)
        plans.append(draw_plan(FULL, 8, 256))
    assert torch.equal(plans[0].matrix, plans[1].matrix)
    assert not torch.equal(plans[0].matrix, plans[2].matrix)
    assert [name for name, _ in plans[0].changes] == [name for name, _ in plans[1].changes]
    for (_, one), (_, other) in zip(plans[0].changes, plans[1].changes, strict=True):
        assert all(torch.equal(one[k], other[k]) for k in one)
    sent = sum(
        v.nbytes for _, values in plans[0].changes for k, v in values.items() if k != "layer"
    )
    assert sent < 8 * 1024


# --- how much a host has to ask of a device ------------------------------------------------------


class Asked(TorchDispatchMode):
    """Counts operations other than views."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aliases = [r.alias_info for r in function._schema.returns]
        self.n += not any(a is not None and not a.is_write for a in aliases)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("name", "most"), [("geometric", 25), ("colour", 165), ("dermoscopy", 265), ("full", 430)]
)
def test_number_of_operations_per_batch(name, most):
    """Of 16 x 256 x 256; on a device of which only shapes are known. Each is a launch on a GPU."""
    pipeline, meta = build_augment(ComponentConfig(name)), torch.device("meta")
    images = torch.empty(16, 256, 256, 3, dtype=torch.uint8, device=meta)
    masks = torch.empty(16, 256, 256, dtype=torch.uint8, device=meta)
    asked = []
    for seed in range(4):
        reseed(pipeline, seed)
        packed = pack_plan(torch.arange(16), draw_plan(pipeline, 16, 256))
        _, plan = unpack_plan(PackedPlan(packed.content.to(meta), packed.layout))
        apply_plan(plan, images, masks)  # what is the same for all batches is made once
        with Asked() as counter:
            apply_plan(plan, images, masks)
        asked.append(counter.n)
    assert 0 < max(asked) <= most


# --- packed --------------------------------------------------------------------------------------


def alike(one, other):
    """Whether two plans hold the same names, in the same order, and equal tensors."""
    pairs = [(one.matrix, other.matrix), (one.bend, other.bend)]
    for (name, values), (same, others) in zip(one.changes, other.changes, strict=True):
        assert name == same and list(values) == list(others)
        pairs += [(values[key], others[key]) for key in values]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", AUGMENTS)
def test_unpacking_returns_the_packed_plan(name, n):
    pipeline = build_augment(ComponentConfig(name))
    for seed in range(3):
        reseed(pipeline, seed)
        plan = draw_plan(pipeline, n, 33)  # layers of 1089 bytes, which is no multiple of anything
        packed = pack_plan(torch.arange(n), plan)
        rows, found = unpack_plan(pickle.loads(pickle.dumps(packed)))
        assert torch.equal(rows, torch.arange(n)) and alike(found, plan)


def test_packed_tensors_are_aligned():
    reseed(FULL, 0)
    packed = pack_plan(torch.arange(15), draw_plan(FULL, 15, 33))
    rows, plan = unpack_plan(packed)
    tensors = [rows, plan.matrix, plan.bend]
    tensors += [value for _, values in plan.changes for value in values.values()]
    assert len(tensors) > 20 and packed.content.dtype == torch.uint8
    begin, end = packed.content.data_ptr(), packed.content.data_ptr() + packed.content.nbytes
    # Views, each after the last, with less than eight bytes between two.
    for tensor in tensors:
        if tensor.numel():
            assert tensor.data_ptr() % tensor.itemsize == 0
            assert 0 <= tensor.data_ptr() - begin < 8
            begin = tensor.data_ptr() + tensor.nbytes
    assert 0 <= end - begin < 8


def test_an_empty_plan_can_be_packed():
    empty = A.Compose([])
    rows, plan = unpack_plan(pack_plan(torch.arange(3), draw_plan(empty, 3, 16)))
    assert rows.tolist() == [0, 1, 2]
    assert plan.matrix.shape == (0, 2, 3) and plan.bend.shape == (0, 3, 3, 2)
    assert plan.changes == []


def test_unsupported_orders_are_not_batchable():
    turn, *_ = [t for t in FULL.transforms if type(t) is A.Affine]
    bend = FULL.transforms[2]
    assert is_batchable(A.Compose([turn, bend]))
    assert not is_batchable(A.Compose([bend, turn]))
    assert not is_batchable(A.Compose([A.RandomGamma(), turn]))
    assert not is_batchable(A.Compose([A.Solarize()]))


# --- against others ------------------------------------------------------------------------------


def as_batch(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def test_lab_equals_opencv_and_is_invertible():
    image = noise(48)[0]
    ours = pixels.to_lab(as_batch(image))[0].permute(1, 2, 0).numpy()
    theirs = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2LAB) * (2.55, 1, 1)
    # OpenCV reads its curves from tables.
    assert np.abs(ours - theirs).max() < 0.6
    again = pixels.from_lab(torch.from_numpy(ours).permute(2, 0, 1)[None])
    assert (again - as_batch(image)).abs().max() < 0.01


@pytest.mark.parametrize("size", [16, 50, 64])
@pytest.mark.parametrize("clip", [1.0, 2.5, 4.0, 40.0])
def test_clahe_equals_opencv(size, clip):
    light = np.ascontiguousarray(render(3, 64, 64).image[:size, :size, 0])
    theirs = cv2.createCLAHE(clip, (4, 4)).apply(light)
    ours = pixels._equalise(torch.from_numpy(light)[None].float(), torch.tensor([clip]))[0]
    assert np.abs(ours.numpy() - theirs).max() <= 0.51


def test_hue_shift_equals_opencv():
    image = np.float32(noise(32)[0]) / 255
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 0.3 * 360) % 360
    theirs = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    ours = pixels.shift_hue(as_batch(noise(32)[0]), torch.tensor([0.3]))
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - theirs).max() < 0.1


def test_hair_removal_equals_the_host():
    """Nearly all of the difference that the hairs made is gone, and nothing else is changed."""
    skin = np.full((8, 96, 96, 3), (205, 165, 150), np.uint8)
    masks = np.zeros(skin.shape[:3], np.uint8)
    hairy, _ = on_host(always(Hair(1.0)), skin, masks)
    made = np.abs(hairy.astype(float) - skin).mean()
    removal = always(HairRemoval(1.0))
    left = [
        np.abs(f(removal, hairy, masks)[0].astype(float) - skin).mean() for f in (on_host, batched)
    ]
    assert made > 2
    assert left[1] < 0.35 * made and left[1] < left[0] + 0.1 * made
    clean, _ = batched(removal, skin, masks)
    assert np.array_equal(clean, skin)
