"""The host's executor does what albumentations does, to the bit; our affine change too."""

import albumentations as A
import numpy as np
import pytest

from lesionseg.augment import AUGMENTS, apply_pipeline, build_augment, reseed
from lesionseg.augment.geometry import SYMMETRIES, Warp, turn, warp
from lesionseg.data.synthetic import render
from lesionseg.space import ComponentConfig

from .samples import noise


@pytest.fixture(scope="module")
def lesion():
    drawn = render(1, 48, 48)
    return drawn.image, (drawn.mask > 0).astype(np.uint8)


@pytest.mark.parametrize("strength", [0.1, 1.0])
@pytest.mark.parametrize("name", AUGMENTS)
def test_results_equal_albumentations_bit_by_bit(name, strength, lesion):
    params = {"strength": strength} if AUGMENTS[name].space else {}
    pipeline, (image, mask) = build_augment(ComponentConfig(name, params)), lesion
    before = image.copy(), mask.copy()
    reseed(pipeline, 5)
    theirs = [pipeline(image=image, mask=mask) for _ in range(40)]
    reseed(pipeline, 5)
    for their in theirs:
        ours, our_mask = apply_pipeline(pipeline, image, mask)
        assert np.array_equal(ours, their["image"]) and np.array_equal(our_mask, their["mask"])
        assert ours.flags.c_contiguous and our_mask.flags.c_contiguous
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


def parents(ours):
    """Albumentations' own affine change with the same ranges."""
    given = {k: getattr(ours, k) for k in ("scale", "rotate", "shear", "translate_percent")}
    return A.Affine(**given, keep_ratio=ours.keep_ratio, border_mode=ours.border_mode, p=1.0)


@pytest.mark.parametrize("build", [warp, turn])
@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_warp_equals_its_parent_class(build, shape):
    ours = build(1.0, p=1.0)
    pair, (image, mask) = [A.Compose([ours]), A.Compose([parents(ours)])], noise(*shape)
    assert isinstance(ours, Warp)
    for pipeline in pair:
        reseed(pipeline, 3)
    for _ in range(20):
        one, other = (pipeline(image=image, mask=mask) for pipeline in pair)
        matrices = [pipeline.transforms[0].params["matrix"] for pipeline in pair]
        np.testing.assert_allclose(*matrices, atol=1e-9)
        # A place just between two of OpenCV's thirty-seconds may fall to either.
        assert (one["image"] != other["image"]).mean() < 0.01
        assert (one["mask"] != other["mask"]).mean() < 0.01


@pytest.mark.parametrize("name", SYMMETRIES)
def test_symmetries_equal_albumentations(name):
    theirs = A.D4(p=1.0)
    for array in (noise(9)[0], noise(9)[1]):
        expected = theirs.apply(array, group_element=name)
        assert np.array_equal(SYMMETRIES[name](array), expected)
