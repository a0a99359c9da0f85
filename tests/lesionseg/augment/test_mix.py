"""MIXES: hand-worked cases, exact targets, determinism, and what is kept."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from lesionseg.augment.mix import MIXES, build_cutmix, build_mix, build_mixup
from lesionseg.errors import InputError
from lesionseg.space import ComponentConfig

COMPONENTS = [
    ComponentConfig(name, dict(zip(option.space, values, strict=True)))
    for name, option in MIXES.items()
    for values in itertools.product(*(d.extremes() for d in option.space.values()))
]
COMPONENTS += [ComponentConfig(name) for name, option in MIXES.items() if option.space]
every_mix = pytest.mark.parametrize(
    "component",
    [p for p in COMPONENTS if p.name != "none"],
    ids=lambda p: "-".join([p.name, *map(str, p.params.values())]),
)


class Told:
    """A generator with fixed draws."""

    def __init__(self, shift, beta, starts=None):
        self.beta = lambda a, b, size=None: beta if size is None else np.full(size, beta)
        self.drawn = iter([shift] if starts is None else [shift, np.array(starts)])

    def integers(self, low, high):
        value = next(self.drawn)
        assert np.all(np.asarray(value) >= low) and np.all(np.asarray(value) < high)
        return value


def batch(n=4, height=16, width=24, seed=0):
    torch.manual_seed(seed)
    images = torch.randn(n, 3, height, width)
    return images, (torch.rand(n, 1, height, width) < 0.3).float()


def test_none_is_not_called():
    assert build_mix(ComponentConfig("none")) is None


@every_mix
def test_shapes_types_and_arguments_are_kept_and_targets_stay_in_range(component):
    mix = build_mix(component)
    for seed, dtype in itertools.product(range(5), [torch.float32, torch.float16, torch.bfloat16]):
        images, masks = (t.to(dtype) for t in batch(5))
        images = images.to(memory_format=torch.channels_last)
        before = images.clone(), masks.clone()
        mixed, targets = mix(images, masks, np.random.default_rng(seed))
        assert mixed.shape == images.shape and mixed.dtype == dtype
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert targets.shape == masks.shape and targets.dtype == dtype
        assert targets.min() >= 0 and targets.max() <= 1
        assert torch.isfinite(mixed).all()
        assert torch.equal(images, before[0]) and torch.equal(masks, before[1])


@every_mix
def test_the_generator_determines_the_result(component):
    images, masks = batch(6)
    mix = build_mix(component)
    state = torch.random.get_rng_state()
    first = mix(images, masks, np.random.default_rng(1))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99), np.random.seed(99)
    again = mix(images, masks, np.random.default_rng(1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [mix(images, masks, np.random.default_rng(s))[0] for s in range(2, 8)]
    assert not all(torch.equal(first[0], o) for o in others)


@every_mix
def test_a_batch_of_one_is_unchanged(component):
    images, masks = batch(1)
    mixed, targets = build_mix(component)(images, masks, np.random.default_rng(0))
    assert mixed is images and targets is masks


@every_mix
def test_equal_images_are_unchanged(component):
    images, masks = (t[:1].repeat(4, 1, 1, 1) for t in batch())
    mixed, targets = build_mix(component)(images, masks, np.random.default_rng(0))
    assert torch.allclose(mixed, images) and torch.equal(targets, masks)


@every_mix
def test_the_mask_is_mixed_just_as_the_image(component):
    _, masks = batch(6)
    mixed, targets = build_mix(component)(masks.repeat(1, 3, 1, 1), masks, np.random.default_rng(4))
    assert torch.equal(mixed, targets.repeat(1, 3, 1, 1))


@every_mix
def test_nothing_is_read_back_from_the_device(component):
    # A meta tensor has no values: to read one back, which would wait for a device, is an error.
    images, masks = (t.to("meta") for t in batch())
    mixed, targets = build_mix(component)(images, masks, np.random.default_rng(0))
    assert mixed.device.type == targets.device.type == "meta"
    assert mixed.shape == images.shape and targets.shape == masks.shape


def test_mixup_by_hand():
    images = torch.tensor([10.0, 20.0, 40.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    masks = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    mixed, targets = build_mixup(0.4)(images, masks, Told(shift=1, beta=0.75))
    # 0.75 of each and 0.25 of the next; the last one's next is the first.
    assert mixed[:, 0, 0, 0].tolist() == [12.5, 25.0, 32.5]
    assert targets[:, 0, 0, 0].tolist() == [0.25, 1.0, 0.75]
    mixed, _ = build_mixup(0.4)(images, masks, Told(shift=2, beta=0.75))
    assert mixed[:, 0, 0, 0].tolist() == [17.5, 17.5, 35.0]


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_the_weights_of_mixup_follow_the_beta_distribution(alpha):
    mix, rng = build_mixup(alpha), np.random.default_rng(0)
    one_of_two = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    images = one_of_two.expand(2, 3, 1, 1)
    weights = [float(mix(images, one_of_two, rng)[1][0]) for _ in range(500)]
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_no_image_is_its_own_partner_and_all_others_occur():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    # All of the partner: the image itself has no weight.
    rows = [
        tuple(build_mixup(1.0)(images, images[:, :1], Told(s, 0.0))[0][:, 0, 0, 0].tolist())
        for s in (1, 2, 3)
    ]
    assert all(a != b for row in rows for a, b in zip(row, range(4), strict=True))
    assert [sorted(partners) for partners in zip(*rows, strict=True)] == [
        [b for b in range(4) if b != a] for a in range(4)
    ]


def test_cutmix_by_hand():
    images = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 4, 8)
    masks = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 8)
    told = Told(shift=1, beta=0.75, starts=[[0, 2], [2, 4]])
    mixed, targets = build_cutmix(1.0)(images, masks, told)
    # A quarter of the area: half of each side, 2 x 4 pixels.
    first = torch.zeros(4, 8)
    first[0:2, 2:6] = 1
    second = torch.ones(4, 8)
    second[2:4, 4:8] = 0
    assert torch.equal(targets[:, 0], torch.stack([first, second]))
    assert torch.equal(mixed, targets.expand(2, 3, 4, 8) + 1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_box_has_the_area_that_was_drawn(beta):
    class Drawn:
        def __init__(self):
            self.rng = np.random.default_rng(0)
            self.integers = self.rng.integers

        def beta(self, a, b, size):
            return np.full(size, beta)

    height, width = 40, 64
    ones = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, height, width)
    _, targets = build_cutmix(1.0)(ones.expand(2, 3, height, width), ones, Drawn())
    area = float(targets[0].mean())
    assert area == pytest.approx(1 - beta, abs=0.02)
    # One whole rectangle of the image's own proportions.
    rows, columns = targets[0, 0].amax(dim=1).sum(), targets[0, 0].amax(dim=0).sum()
    assert rows * columns == targets[0].sum()
    assert float(rows / height) == pytest.approx(float(columns / width), abs=0.02)


@pytest.mark.parametrize("alpha", [0.05, 1.0, 2.0])
def test_every_pixel_of_cutmix_comes_from_one_of_two_images_with_its_label(alpha):
    images, masks = batch(5)
    for seed in range(10):
        mixed, targets = build_cutmix(alpha)(images, masks, np.random.default_rng(seed))
        assert set(targets.unique().tolist()) <= {0.0, 1.0}
        both, mixed_both = torch.cat([images, masks], 1), torch.cat([mixed, targets], 1)
        own = (mixed_both == both).all(dim=1)
        fits = [
            (own | (mixed_both == both.roll(-by, 0)).all(dim=1)).all().item() for by in range(1, 5)
        ]
        assert any(fits)


def test_the_boxes_of_a_batch_differ_and_reach_every_corner():
    n = 40
    own = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 1, 12, 12)
    _, mixed = build_cutmix(1.0)(own.expand(n, 3, 12, 12), own, np.random.default_rng(3))
    boxes = mixed != own
    assert boxes.any(dim=0).all() and not boxes.all(dim=0).any()
    assert len({tuple(b.tolist()) for b in boxes.flatten(1)}) > n / 2


def test_an_invalid_component_is_refused():
    with pytest.raises(InputError, match=r"^unknown mix 'mixcut'"):
        build_mix(ComponentConfig("mixcut"))
    with pytest.raises(InputError, match=r"alpha must lie in \[0\.05, 2\], got 0"):
        build_mix(ComponentConfig("mixup", {"alpha": 0}))
