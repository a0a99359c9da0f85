"""The contract of every entry of MODELS: shapes, sizes, gradients, logits, training."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from lesionseg.data.loader import normalise
from lesionseg.data.synthetic import render
from lesionseg.errors import InputError
from lesionseg.losses import build_loss
from lesionseg.metrics import overlap
from lesionseg.models import MODELS, build_model, count_params, multiply_adds
from lesionseg.models.smp import FINE_TUNING
from lesionseg.space import ComponentConfig


def min_size(name, params):
    entry = MODELS[name]
    stride = entry.stride(**params)
    return -(-max(stride, entry.min_image_size) // stride) * stride


def images(size, n=2):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(n, 3, size, size, generator=generator)


def small_params(name):
    """Parameters of a small network."""
    space = MODELS[name].space
    small = {"width": 8, "init_filters": 8, "depth": 3}
    return MODELS[name].resolve({k: space[k].check(v) for k, v in small.items() if k in space})


def build_seeded(name, params=None, size=64):
    torch.manual_seed(0)
    component = ComponentConfig(name, small_params(name) if params is None else params)
    return build_model(component, image_size=size)


def variations(name):
    """Each parameter at its extremes; what concerns encoders is tested in test_smp."""
    for key, domain in MODELS[name].space.items():
        if key not in {"encoder", "weights", *FINE_TUNING}:
            for value in domain.extremes():
                yield name, small_params(name) | {key: value}


def all_outputs(model, x):
    outputs = model(x)
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    """Each network, built once: its name, smallest image size and module."""
    size = min_size(request.param, small_params(request.param))
    return request.param, size, build_seeded(request.param, size=size)


@pytest.fixture
def network(built):
    """A copy that a test may change, and the smallest image size."""
    _, size, model = built
    return copy.deepcopy(model), size


def test_trains_at_its_smallest_size_and_the_next(built, network):
    name, stride = built[0], MODELS[built[0]].stride(**small_params(built[0]))
    for model, size in (network, (None, network[1] + stride)):
        model = model or (
            build_seeded(name, size=size) if MODELS[name].needs_image_size else network[0]
        )
        model.to(memory_format=torch.channels_last).zero_grad()  # as in a training
        (logits,) = all_outputs(model.train(), images(size))
        assert logits.shape == (2, 1, size, size)
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert [n for n, p in trainable if p.grad is None] == []
        assert [n for n, p in trainable if not bool(p.grad.isfinite().all())] == []
        # torch's fused optimizers read both in the order of the memory, without a check.
        assert [n for n, p in trainable if memory_strides(p) != memory_strides(p.grad)] == []


def memory_strides(tensor):
    """Strides of the dimensions that have more than one element; others have no meaning."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


@pytest.mark.parametrize(
    ("name", "params"), [v for n in MODELS for v in variations(n)], ids=lambda v: str(v)
)
def test_every_extreme_of_its_space_trains_and_keeps_the_size(name, params):
    size = min_size(name, params)
    # Wide networks are run on the meta device, without memory for their weights.
    is_large = params.get("width", 0) > 32 or params.get("init_filters", 0) > 16
    is_large |= params.get("decoder_width", 1) > 1
    with torch.device("meta") if is_large else nullcontext():
        model = build_seeded(name, params, size)
    x = images(size).to(next(model.parameters()).device)
    outputs = all_outputs(model.train(), x)
    assert all(logits.shape == (2, 1, size, size) for logits in outputs)
    sum(logits.mean() for logits in outputs).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert isinstance(model.eval()(x), torch.Tensor)


def test_output_is_logits(network):
    """The output moves with the head's bias: there is no activation after it."""
    model, size = network
    with torch.inference_mode():
        before = model.eval()(images(size, 1))
        head = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1][-1]
        assert head.bias is not None
        head.bias += 50.0
        difference = model(images(size, 1)) - before
    # HarDNet-MSEG's head is followed by upsampling, which keeps constants.
    torch.testing.assert_close(difference, torch.full_like(difference, 50.0), atol=1e-3, rtol=0)


def test_evaluation_does_not_depend_on_the_batch(network):
    model, size = network
    batch = images(size, 3)
    with torch.inference_mode():
        model.train()(batch)  # changes batch-norm statistics
        model.eval()
        together = model(batch)
        alone = model(batch[1:2].contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(alone, together[1:2], atol=1e-3, rtol=1e-3)


def test_the_seed_determines_the_weights_and_a_state_can_be_loaded(built):
    name, size, model = built
    same = build_seeded(name, size=size)
    assert all(torch.equal(same.state_dict()[k], v) for k, v in model.state_dict().items())
    torch.manual_seed(7)
    component = ComponentConfig(name, small_params(name))
    other = build_model(component, image_size=size, load_pretrained=False)
    other.load_state_dict(model.state_dict())
    x = images(size, 1)
    with torch.inference_mode():
        assert torch.equal(other.eval()(x), copy.deepcopy(model).eval()(x))


def test_cost_grows_with_the_image(built):
    name, size, model = built
    size = 128 if name in {"smp_pan", "dynunet"} else 64
    model = build_seeded(name, size=size) if MODELS[name].needs_image_size else model
    assert count_params(model) > 1000
    macs = multiply_adds(model, size)
    # Pooled branches and attention do not grow with the area.
    assert 2.5 * macs < multiply_adds(model, 2 * size) < 8 * macs
    assert macs > 100_000


def test_only_trainable_parameters_are_counted():
    layer = nn.Linear(3, 2)
    assert count_params(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_params(layer) == 6


def test_table_is_complete():
    own = {"unet", "segnet", "hardnet_mseg"}
    monai = {"dynunet", "segresnet", "attention_unet"}
    assert own | monai <= set(MODELS)
    assert len([n for n in MODELS if n.startswith("smp_")]) == 12
    assert len(MODELS) == 18


def test_invalid_components_are_refused():
    with pytest.raises(InputError, match=r"^unknown model 'segnett' \(did you mean 'segnet'\?\)$"):
        build_model(ComponentConfig("segnett"), image_size=64)
    with pytest.raises(InputError, match=r"^model\.unet: width must lie in \[4, 128\], got 3$"):
        build_model(ComponentConfig("unet", {"width": 3}), image_size=64)


def lesions(size, n=4):
    """The largest lesions of some images; lesions of a few pixels cannot be learnt."""
    rendered = [render(seed, size, size) for seed in range(3 * n)]
    samples = sorted(rendered, key=lambda s: int(s.mask.sum()), reverse=True)
    pixels = np.stack([s.image for s in samples[:n]])
    masks = np.stack([s.mask > 0 for s in samples[:n]])
    return normalise(torch.from_numpy(pixels)), torch.from_numpy(masks)[:, None].float()


OPTIONS = {"norm": "group", "residual": True, "attention": True, "deep_supervision": True}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in MODELS), ("unet", OPTIONS)])
def test_overfits_four_images(name, options):
    size = 128 if name == "smp_pan" else 64
    params = MODELS[name].resolve(options)
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
        if step % 10 == 9:
            with torch.inference_mode():
                counts = overlap.count_pixels(model.eval()(x) > 0, y > 0.5)
            best = max(best, overlap.mean_scores(overlap.score_images(counts.numpy())).dice)
            if best >= 0.95:
                return
    raise AssertionError(f"Dice {best:.4f} after 400 steps")
