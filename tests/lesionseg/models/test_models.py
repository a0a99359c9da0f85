"""The contract of every row of MODELS: shapes, sizes, gradients, logits."""

import itertools

import pytest
import torch
from torch import nn

from lesionseg.errors import InputError
from lesionseg.models import MODELS, build_model, count_params
from lesionseg.models.smp import ARCHITECTURES, ENCODERS, REFUSED, build_smp
from lesionseg.space import Categorical, Pick

#: What the library keeps of an encoder beyond the depth that it uses; no gradient can reach it.
DEAD = {"smp_pspnet": ("encoder.layer3", "encoder.layer4")}
OWN = ("unet", "segnet")


def sizes(name, params):
    """The smallest size of a row and the next that is a multiple of its stride."""
    option = MODELS[name]
    stride = option.stride(**params)
    smallest = -(-max(stride, option.smallest) // stride) * stride
    return smallest, smallest + stride


def images(size, n=2):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(n, 3, size, size, generator=generator)


def fresh(name, params=None):
    torch.manual_seed(0)
    return build_model(Pick(name, params or {}))


def corners(name):
    """Every combination of the extreme values of a row's parameters."""
    space = MODELS[name].space
    for values in itertools.product(*(d.corners() for d in space.values())):
        yield name, dict(zip(space, values, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_at_its_smallest_size_and_at_the_next(name):
    model = fresh(name)
    for size in sizes(name, MODELS[name].resolve({})):
        model.zero_grad(set_to_none=True)
        logits = model(images(size))
        assert logits.shape == (2, 1, size, size)
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert [n for n in missing if not n.startswith(DEAD.get(name, ()))] == []
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("name", OWN)
def test_the_gradient_of_every_parameter_of_ours_is_not_zero(name):
    model = fresh(name)
    _, size = sizes(name, MODELS[name].resolve({}))
    model(images(size)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "params"), [c for n in MODELS for c in corners(n)], ids=lambda v: str(v)
)
def test_every_corner_of_its_space_builds_and_keeps_the_size(name, params):
    # Shapes only, without memory for the weights: the largest U-Net has two billion of them.
    # mit_b0 asks for a number while it is built, so that it needs real ones; it is small.
    real = params.get("encoder") == "mit_b0"
    with torch.device("cpu" if real else "meta"):
        model = build_model(Pick(name, params)).train()
        for size in sizes(name, params):
            assert model(torch.zeros(2, 3, size, size)).shape == (2, 1, size, size)


@pytest.mark.parametrize("name", MODELS)
def test_what_it_gives_are_logits(name):
    """The head's bias moves the output by as much: nothing squashes it afterwards."""
    model = fresh(name).eval()
    size, _ = sizes(name, MODELS[name].resolve({}))
    with torch.inference_mode():
        before = model(images(size, 1))
        bias = list(model.parameters())[-1]
        assert bias.shape == (1,)
        bias += 50.0
        after = model(images(size, 1))
    torch.testing.assert_close(after, before + 50.0, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_in_evaluation_an_image_is_judged_by_itself(name):
    model = fresh(name)
    size, _ = sizes(name, MODELS[name].resolve({}))
    batch = images(size, 3)
    with torch.inference_mode():
        model.train()(batch)  # gives batch norm statistics to forget
        model.eval()
        together = model(batch)
        alone = model(batch[1:2].contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(alone, together[1:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_fixes_its_weights(name):
    one, same = fresh(name).state_dict(), fresh(name).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)


@pytest.mark.parametrize("params", [{"width": 4, "depth": 1}, {"width": 4, "depth": 3}])
def test_unet_refuses_what_is_no_multiple_of_its_stride(params):
    stride = MODELS["unet"].stride(**params)
    assert stride == 2 ** params["depth"]
    model = fresh("unet", params)
    for size in (stride - 1, stride + 1, 3 * stride // 2, 2 * stride - 1):
        with pytest.raises(RuntimeError, match="size"):
            model(images(size))


def test_segnet_refuses_what_is_no_multiple_of_its_stride():
    model = fresh("segnet", {"width": 4})
    assert MODELS["segnet"].stride(width=4) == 32
    for size in (16, 33, 40, 48, 63):
        with pytest.raises(RuntimeError, match="size"):
            model(images(size))


def block(a, b):
    """Two 3x3 convolutions without bias, each with a batch norm of weight and bias."""
    return 9 * a * b + 9 * b * b + 2 * 2 * b


def test_the_smallest_unet_has_as_many_parameters_as_by_hand():
    stem = 9 * 3 * 4 + 9 * 4 * 4 + 16  # 268
    down = 9 * 4 * 8 + 9 * 8 * 8 + 32  # 896
    up = 2 * 2 * 8 * 4 + 4  # 132: the transposed convolution has a bias
    merge = 9 * 8 * 4 + 9 * 4 * 4 + 16  # 448: what comes up beside what was kept
    head = 4 + 1
    assert stem + down + up + merge + head == 1749
    assert count_params(fresh("unet", {"width": 4, "depth": 1})) == 1749


@pytest.mark.parametrize(("width", "depth"), [(32, 4), (64, 4), (16, 2), (5, 6)])
def test_a_unet_has_as_many_parameters_as_by_hand(width, depth):
    expected = block(3, width) + width + 1
    for level in range(depth):
        a, b = width * 2**level, width * 2 ** (level + 1)
        expected += block(a, b)  # down
        expected += 4 * b * a + a + block(2 * a, a)  # up, merge
    with torch.device("meta"):
        assert count_params(fresh("unet", {"width": width, "depth": depth})) == expected


def test_segnet_has_as_many_parameters_as_by_hand():
    def convs(*channels):
        pairs = zip(channels, channels[1:], strict=False)
        return sum(9 * a * b + 2 * b for a, b in pairs)

    encoder = convs(3, 4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32)
    decoder = convs(32, 32, 32, 32, 32, 32, 16, 16, 16, 8, 8, 4, 4, 4)
    assert count_params(fresh("segnet", {"width": 4})) == encoder + decoder + 4 + 1


def test_the_published_segnet_has_the_encoder_of_vgg16():
    from torchvision.models import vgg16_bn

    with torch.device("meta"):
        theirs = vgg16_bn(weights=None).features
        ours = fresh("segnet", {"width": 64}).encoder
    biases = sum(m.bias.numel() for m in theirs if isinstance(m, nn.Conv2d))
    assert count_params(ours) == count_params(theirs) - biases


def test_segnet_puts_values_back_where_the_maxima_were():
    model = fresh("segnet", {"width": 4}).eval()
    seen = {}
    model.encoder[0].register_forward_hook(lambda *args: seen.update(encoded=args[-1]))
    model.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.update(restored=inputs[0]))
    with torch.inference_mode():
        model(images(32, 1))
    encoded, restored = seen["encoded"], seen["restored"]
    # Each 2x2 block of each channel holds one value, at the place of the encoder's maximum.
    for block_encoded, block_restored in zip(
        encoded.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 4),
        restored.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 4),
        strict=True,
    ):
        filled = block_restored.nonzero().flatten().tolist()
        assert filled in ([], [int(block_encoded.argmax())])
    assert restored.any()


def test_only_trainable_parameters_are_counted():
    layer = nn.Linear(3, 2)
    assert count_params(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_params(layer) == 6


@pytest.mark.parametrize(
    ("architecture", "encoder"), list(itertools.product(ARCHITECTURES, ENCODERS))
)
def test_the_library_refuses_exactly_the_pairs_said_to_be_refused(architecture, encoder):
    refused = encoder in REFUSED.get(architecture, ())
    choices = MODELS[f"smp_{architecture}"].space["encoder"].choices
    assert (encoder in choices) != refused
    # What is not refused is built by the test of corners, since every choice is a corner.
    if refused:
        with pytest.raises(
            InputError, match=rf"model\.smp_{architecture}: encoder '{encoder}': .*support"
        ):
            build_smp(architecture, encoder=encoder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_misspelt_encoder_is_refused_and_not_swallowed(architecture):
    assert isinstance(MODELS[f"smp_{architecture}"].space["encoder"], Categorical)
    with pytest.raises(InputError, match="resnet18x"):
        build_smp(architecture, encoder="resnet18x")


def test_a_pick_outside_the_table_is_refused():
    with pytest.raises(InputError, match=r"^unknown model 'segnett' \(did you mean 'segnet'\?\)$"):
        build_model(Pick("segnett"))
    with pytest.raises(InputError, match=r"^model\.unet: width must lie in \[4, 128\], got 3$"):
        build_model(Pick("unet", {"width": 3}))
