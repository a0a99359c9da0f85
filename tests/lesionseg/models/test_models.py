"""The contract of every row of MODELS: shapes, sizes, gradients, logits, and that it learns."""

import numpy as np
import pytest
import torch
from torch import nn

from lesionseg import metrics
from lesionseg.data.loader import normalise
from lesionseg.data.synthetic import render
from lesionseg.errors import InputError
from lesionseg.losses import build_loss
from lesionseg.models import MODELS, build_model, count_params
from lesionseg.models.cost import multiply_adds
from lesionseg.space import ComponentConfig


def sizes(name, params):
    """The smallest size of a row and the next that is a multiple of its stride."""
    option = MODELS[name]
    stride = option.stride(**params)
    smallest = -(-max(stride, option.min_image_size) // stride) * stride
    return smallest, smallest + stride


def images(size, n=2):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(n, 3, size, size, generator=generator)


def small(name):
    """The row's smallest network: every test here is of what it does, not of how much."""
    lean = {"width": 8, "init_filters": 8, "depth": 3}
    space = MODELS[name].space
    chosen = {k: space[k].check(v) for k, v in lean.items() if k in space}
    return MODELS[name].resolve(chosen)


def build_seeded(name, params=None, size=64):
    torch.manual_seed(0)
    return build_model(ComponentConfig(name, small(name) if params is None else params), image_size=size)


def variations(name):
    """Each parameter at each of its extremes, the others as in ``small``; not the encoder, every
    one of which has its own test beside the library."""
    for key, domain in MODELS[name].space.items():
        if key not in {"encoder", "weights"}:
            for value in domain.extremes():
                yield name, small(name) | {key: value}


def outputs_of(model, x):
    given = model(x)
    return given if isinstance(given, tuple) else (given,)


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_at_its_smallest_size_and_at_the_next(name):
    for size in sizes(name, small(name)):
        model = build_seeded(name, size=size)
        (logits,) = outputs_of(model, images(size))
        assert logits.shape == (2, 1, size, size)
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert [n for n, p in trained if p.grad is None] == []
        assert [n for n, p in trained if not bool(p.grad.isfinite().all())] == []


@pytest.mark.parametrize(
    ("name", "params"), [v for n in MODELS for v in variations(n)], ids=lambda v: str(v)
)
def test_every_extreme_of_its_space_trains_and_keeps_the_size(name, params):
    size, _ = sizes(name, params)
    # The widest networks are built and run by shape alone, without memory for their weights.
    model = build_seeded(name, params, size) if not is_large(params) else on_meta(name, params, size)
    x = images(size).to(next(model.parameters()).device)
    given = outputs_of(model.train(), x)
    assert all(logits.shape == (2, 1, size, size) for logits in given)
    sum(logits.mean() for logits in given).backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert isinstance(model.eval()(x), torch.Tensor)


def is_large(params):
    return params.get("width", 0) > 32 or params.get("init_filters", 0) > 16


def on_meta(name, params, size):
    with torch.device("meta"):
        return build_seeded(name, params, size)


@pytest.mark.parametrize("name", MODELS)
def test_what_it_gives_are_logits(name):
    """The head's bias moves the output by as much: nothing squashes it afterwards."""
    size, _ = sizes(name, small(name))
    model = build_seeded(name, size=size).eval()
    with torch.inference_mode():
        before = model(images(size, 1))
        head = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1][-1]
        assert head.bias is not None
        head.bias += 50.0
        moved = model(images(size, 1)) - before
    # HarDNet-MSEG's head is followed by upsampling, which keeps constants.
    torch.testing.assert_close(moved, torch.full_like(moved, 50.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_in_evaluation_an_image_is_judged_by_itself(name):
    size, _ = sizes(name, small(name))
    model = build_seeded(name, size=size)
    batch = images(size, 3)
    with torch.inference_mode():
        model.train()(batch)  # gives batch norm statistics to forget
        model.eval()
        together = model(batch)
        alone = model(batch[1:2].contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(alone, together[1:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_fixes_its_weights_and_the_state_can_be_put_back(name):
    size, _ = sizes(name, small(name))
    one, same = build_seeded(name, size=size), build_seeded(name, size=size)
    assert all(torch.equal(one.state_dict()[k], v) for k, v in same.state_dict().items())
    torch.manual_seed(7)
    other = build_model(ComponentConfig(name, small(name)), image_size=size, load_pretrained=False)
    other.load_state_dict(one.state_dict())
    x = images(size, 1)
    with torch.inference_mode():
        assert torch.equal(other.eval()(x), one.eval()(x))


@pytest.mark.parametrize("name", MODELS)
def test_its_cost_is_known_and_grows_with_the_image(name):
    size, larger = (128, 256) if name in {"smp_pan", "dynunet"} else (64, 128)
    model = build_seeded(name, size=size)
    assert count_params(model) > 1000
    macs = multiply_adds(model, size)
    # Pooled branches and attention grow by other powers than the area.
    assert 2.5 * macs < multiply_adds(model, larger) < 8 * macs
    assert macs > 100_000


def test_only_trainable_parameters_are_counted():
    layer = nn.Linear(3, 2)
    assert count_params(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_params(layer) == 6


def test_the_table_holds_what_the_field_uses():
    own = {"unet", "segnet", "hardnet_mseg"}
    monai = {"dynunet", "segresnet", "attention_unet"}
    assert own | monai <= set(MODELS)
    assert len([n for n in MODELS if n.startswith("smp_")]) == 12
    assert len(MODELS) == 18


def test_a_pick_outside_the_table_is_refused():
    with pytest.raises(InputError, match=r"^unknown model 'segnett' \(did you mean 'segnet'\?\)$"):
        build_model(ComponentConfig("segnett"), image_size=64)
    with pytest.raises(InputError, match=r"^model\.unet: width must lie in \[4, 128\], got 3$"):
        build_model(ComponentConfig("unet", {"width": 3}), image_size=64)


def lesions(size, n=8):
    """The largest lesions of a few pictures: what is a pixel or two wide, nothing can learn."""
    drawn = [render(seed, size, size) for seed in range(3 * n)]
    samples = sorted(drawn, key=lambda s: int(s.mask.sum()), reverse=True)
    pixels = np.stack([s.image for s in samples[:n]])
    masks = np.stack([s.mask > 0 for s in samples[:n]])
    return normalise(torch.from_numpy(pixels)), torch.from_numpy(masks)[:, None].float()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_learns_eight_images_by_heart(name):
    size = 128 if name == "smp_pan" else 64
    params = MODELS[name].resolve({})
    if "width" in params and name != "segnet":
        params["width"] = 16
    model = build_seeded(name, params, size).to(memory_format=torch.channels_last)
    x, y = lesions(size)
    loss = build_loss(ComponentConfig("bce_dice"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    best = 0.0
    for step in range(400):
        optimizer.zero_grad()
        loss(model.train()(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            with torch.inference_mode():
                counts = metrics.count_pixels(model.eval()(x) > 0, y > 0.5)
            best = max(best, metrics.mean_scores(metrics.score_images(counts.numpy())).dice)
            if best >= 0.95:
                return
    raise AssertionError(f"Dice {best:.4f} after 400 steps")
