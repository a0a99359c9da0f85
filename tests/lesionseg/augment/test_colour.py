"""Changes of colour: what changes, how far, and that nothing moves."""

import albumentations as A
import cv2
import numpy as np
import pytest

from lesionseg.augment import blur, colours

from .samples import difference, results, skin


def pointwise():
    """All but CLAHE, which looks at the surroundings on purpose."""
    return A.Compose([t for t in colours(1.0) if not isinstance(t, A.CLAHE)])


def test_colours_do_not_depend_on_the_position():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    order = rng.permutation(24 * 24)
    shuffled = image.reshape(-1, 3)[order].reshape(image.shape)
    mask = np.zeros((24, 24), np.uint8)
    pairs = zip(
        results(pointwise(), image, mask, 20),
        results(pointwise(), shuffled, mask, 20),
        strict=True,
    )
    for (one, _), (other, _) in pairs:
        assert difference(one.reshape(-1, 3)[order].reshape(image.shape), other) < 0.01


def test_brightness_contrast_saturation_and_hue_go_both_ways():
    image, mask = skin()
    before = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).reshape(-1, 3).astype(int)
    (jitter, *_) = colours(1.0)
    jitter.p = 1.0
    changes = []
    for changed, _ in results(A.Compose([jitter]), image, mask, 60):
        after = cv2.cvtColor(changed, cv2.COLOR_RGB2HSV).reshape(-1, 3).astype(int)
        hue = (np.median(after[:, 0]) - np.median(before[:, 0]) + 90) % 180 - 90
        spread = changed.std() / image.std() - 1
        changes.append([hue, *(after[:, 1:].mean(axis=0) / before[:, 1:].mean(axis=0) - 1), spread])
    changes = np.array(changes)
    assert (changes.min(axis=0) < [-5, -0.15, -0.15, -0.15]).all()
    assert (changes.max(axis=0) > [5, 0.15, 0.1, 0.15]).all()
    assert np.abs(changes[:, 0]).max() < 0.08 * 180 + 3


def test_share_scales_the_probabilities():
    whole, half = colours(0.5), colours(0.5, share=0.5)
    assert [h.p for h in half] == pytest.approx([w.p / 2 for w in whole])


def test_blur_reduces_sharpness_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    for changed, _ in results(A.Compose([blur(1.0, p=1.0)]), image, mask, 20):
        assert changed.std() <= image.std()
        assert changed.mean() == pytest.approx(image.mean(), abs=2)
