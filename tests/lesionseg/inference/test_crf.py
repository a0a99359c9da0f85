"""The random field against a plain reading of the paper, and what it must never do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lesionseg.inference.crf import MARGIN, crf

RNG = np.random.default_rng


def scene(side=48, seed=0):
    """A dark disc on bright skin, with noise: image uint8 [S, S, 3] and mask bool [S, S]."""
    y, x = np.mgrid[:side, :side]
    mask = (x - 0.5 * side) ** 2 + (y - 0.45 * side) ** 2 < (0.28 * side) ** 2
    image = np.where(mask[..., None], (120, 70, 60), (210, 170, 150))
    noise = RNG(seed).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


def boundary(mask, offset, width):
    """A soft step of the distance to a disc's edge, moved outwards by so many pixels."""
    side = len(mask)
    y, x = np.mgrid[:side, :side]
    inside = 0.28 * side + offset - np.hypot(x - 0.5 * side, y - 0.45 * side)
    return (1 / (1 + np.exp(-inside / width))).astype(np.float32)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def brute_force(
    probability,
    image,
    *,
    weight,
    colour,
    steps,
    appearance_sigma,
    smoothness_sigma,
    smoothness_share,
):
    """Equation by equation over all pairs of pixels, in float64: two classes, Potts."""
    side = probability.shape[0]
    where = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2).astype(float)
    colours = image.reshape(-1, 3).astype(float)
    apart = ((where[:, None] - where) ** 2).sum(-1)
    unlike = ((colours[:, None] - colours) ** 2).sum(-1)
    p = np.clip(probability.reshape(-1).astype(float), MARGIN, 1 - MARGIN)
    unary = -np.log(np.stack([1 - p, p], 1))
    kernels = [
        np.exp(-apart / (2 * (appearance_sigma * side) ** 2) - unlike / (2 * colour**2)),
        np.exp(-apart / (2 * (smoothness_sigma * side) ** 2)),
    ]
    potts = 1 - np.eye(2)
    q = np.stack([1 - p, p], 1)
    for _ in range(steps):
        pairwise = 0.0
        for kernel, part in zip(kernels, (1 - smoothness_share, smoothness_share), strict=True):
            k = kernel * (1 - np.eye(len(kernel)))
            message = k @ q / k.sum(1, keepdims=True)
            pairwise = pairwise + weight * part * message @ potts
        energy = np.exp(-unary - pairwise)
        q = energy / energy.sum(1, keepdims=True)
    return q[:, 1].reshape(side, side)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("appearance_sigma", "smoothness_sigma", "smoothness_share"),
    [(0.2, 0.1, 0.25), (0.5, 0.05, 0.0), (0.1, 0.4, 1.0)],
)
def test_equals_the_papers_mean_field_if_the_window_covers_the_image(
    steps, appearance_sigma, smoothness_sigma, smoothness_share
):
    image = RNG(1).integers(90, 150, (12, 12, 3)).astype(np.uint8)
    probability = RNG(2).random((12, 12)).astype(np.float32)
    settings = {"weight": 3.0, "colour": 25.0, "steps": steps, "appearance_sigma": appearance_sigma}
    settings |= {"smoothness_sigma": smoothness_sigma, "smoothness_share": smoothness_share}
    found = crf(probability, image, **settings, radius=11, dilation=1)
    np.testing.assert_allclose(found, brute_force(probability, image, **settings), atol=2e-5)


def test_window_limits_the_neighbours():
    """With a radius of one and a dilation of two, neighbours are two pixels away."""
    probability = np.array([[0.5, 0.9, 0.5, 0.5, 0.5]], np.float32)
    image = np.full((1, 5, 3), 100, np.uint8)
    settings = {"steps": 1, "smoothness_share": 0.0, "radius": 1, "dilation": 2}
    found = crf(probability, image, weight=1.0, colour=10.0, **settings)
    assert found[0, [0, 2, 4]] == pytest.approx([0.5] * 3)
    # Its only neighbour sends 2 * 0.9 - 1 = 0.8.
    assert found[0, 3] == pytest.approx(1 / (1 + np.exp(-0.8)))
    assert found[0, 1] == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["zeros", "ones", "both", "halves"])
def test_output_is_a_finite_probability(kind):
    for side, colour in itertools.product((1, 2, 7, 33), (0.1, 2.0, 80.0)):
        made = {
            "zeros": np.zeros((side, side)),
            "ones": np.ones((side, side)),
            "both": RNG(3).integers(0, 2, (side, side)),
            "halves": np.full((side, side), 0.5),
        }
        image = RNG(4).integers(0, 256, (side, side, 3)).astype(np.uint8)
        found = crf(made[kind].astype(np.float32), image, weight=20.0, colour=colour, steps=10)
        assert found.shape == (side, side)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_uniform_field_remains_uniform(level):
    image, _ = scene(24)
    field = np.full((24, 24), level, np.float32)
    found = crf(field, image, weight=4.0, colour=15.0)
    assert np.ptp(found) < 1e-5
    assert np.sign(np.round(found - 0.5, 6)) == pytest.approx(np.sign(np.round(field - 0.5, 6)))


def test_symmetric_in_the_classes():
    image, mask = scene(24)
    p = boundary(mask, 0, 2)
    one, other = (crf(q, image, weight=4.0, colour=15.0) for q in (p, 1 - p))
    np.testing.assert_allclose(one, 1 - other, atol=1e-5)


def test_equivariant_to_flips():
    image, mask = scene(24)
    p = boundary(mask, 2, 2)
    found = crf(p, image, weight=4.0, colour=15.0)
    for turn in (np.fliplr, np.flipud, np.rot90):
        turned = crf(turn(p).copy(), turn(image).copy(), weight=4.0, colour=15.0)
        np.testing.assert_allclose(turned, turn(found), atol=1e-5)


@pytest.mark.parametrize("offset", [-2.0, 2.0])
def test_blurred_boundary_moves_to_the_colour_edge(offset):
    image, mask = scene()
    before = boundary(mask, offset, 2.5)
    after = crf(before, image, weight=8.0, colour=20.0)
    assert dice(before > 0.5, mask) < 0.9
    assert dice(after > 0.5, mask) > dice(before > 0.5, mask) + 0.03


def test_no_shift_without_colour_edges():
    _, mask = scene()
    grey = np.full((48, 48, 3), 128, np.uint8)
    before = boundary(mask, 0.0, 2.5)
    after = crf(before, grey, weight=4.0, colour=20.0)
    assert dice(after > 0.5, before > 0.5) > 0.97


def test_isolated_pixel_is_corrected():
    image, mask = scene()
    probability = np.where(mask, 0.9, 0.1).astype(np.float32)
    probability[3, 3], probability[22, 24] = 0.7, 0.3
    after = crf(probability, image, weight=4.0, colour=20.0)
    assert (after > 0.5).tolist() == mask.tolist()


def test_zero_weight_or_steps_change_nothing():
    image, mask = scene(24)
    p = boundary(mask, 0, 2).clip(0.01, 0.99)
    np.testing.assert_allclose(crf(p, image, weight=0.0, colour=20.0), p, atol=1e-6)
    np.testing.assert_allclose(crf(p, image, weight=4.0, colour=20.0, steps=0), p, atol=1e-6)


def test_bandwidths_scale_with_the_image():
    """The same scene at twice the size has the same answer, but for the sampling."""
    (small, mask), (large, big) = scene(48), scene(96)
    kind = {"weight": 8.0, "colour": 30.0, "appearance_sigma": 0.06, "smoothness_sigma": 0.03}
    a = crf(boundary(mask, 2, 2.5), small, **kind)
    b = crf(boundary(big, 4, 5.0), large, **kind)
    assert np.abs(a - b[::2, ::2]).mean() < 0.02


def test_inputs_are_unchanged_and_may_be_read_only():
    image, mask = scene(16)
    p = boundary(mask, 0, 2)
    kept = p.copy(), image.copy()
    p.flags.writeable = image.flags.writeable = False
    first = crf(p, image, weight=4.0, colour=20.0)
    assert (p == kept[0]).all()
    assert (image == kept[1]).all()
    np.testing.assert_array_equal(first, crf(p, image, weight=4.0, colour=20.0))


def test_it_can_be_computed_while_gradients_are_on():
    assert torch.is_grad_enabled()
    image, mask = scene(16)
    crf(boundary(mask, 0, 2), image, weight=4.0, colour=20.0)
    assert torch.is_grad_enabled()
