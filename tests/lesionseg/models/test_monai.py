import importlib
import itertools
import runpy
import sys

import pytest
import torch

import lesionseg.models.monai
from lesionseg.models.monai import MONAI, plan_widths
from lesionseg.space import ComponentConfig, build

SMALL = {
    "dynunet": {"width": 8},
    "segresnet": {"init_filters": 8},
    "attention_unet": {"width": 8, "depth": 2},
}


def images(size, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(size))


def build_seeded(name, params, size):
    torch.manual_seed(0)
    return build("model", MONAI, ComponentConfig(name, params), image_size=size)


def outputs(given):
    return given if isinstance(given, tuple) else (given,)


def corners(name):
    """The small values, and every combination of the choices."""
    choices = {k: d.choices for k, d in MONAI[name].space.items() if hasattr(d, "choices")}
    for values in itertools.product(*choices.values()):
        yield name, {**SMALL[name], **dict(zip(choices, values, strict=True))}


@pytest.mark.parametrize("name", ["segresnet", "attention_unet"])
def test_a_size_off_the_stride_is_none_of_the_row(name):
    stride = MONAI[name].stride(**MONAI[name].resolve(SMALL[name]))
    model = build_seeded(name, SMALL[name], 32).eval()
    with pytest.raises(RuntimeError, match="size"):
        model(images(3 * stride + stride // 2))


@pytest.mark.parametrize("size", [16, 20, 33, 48])
@pytest.mark.parametrize("deep", [False, True])
def test_dynunet_takes_every_size_and_crops_what_it_padded(size, deep):
    model = build_seeded("dynunet", {"width": 8, "deep_supervision": deep}, size)
    for logits in outputs(model.train()(images(size))):
        assert logits.shape == (2, 1, size, size)
    multiple = 2 ** (len(plan_widths(size, 8)) - 1)
    padded = -(-size // multiple) * multiple
    whole = torch.zeros(2, 3, padded, padded)
    whole[..., :size, :size] = images(size)
    with torch.inference_mode():
        model.eval()
        assert torch.equal(model(images(size)), model(whole)[..., :size, :size])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [16, 64])
def test_dynunet_gives_what_the_library_gives(size, residual):
    """The library's own forward pass over the very same blocks, stacked by it in training."""
    from monai.networks.nets import DynUNet

    widths = plan_widths(size, 8)
    strides = [1] + [2] * (len(widths) - 1)
    torch.manual_seed(0)
    theirs = DynUNet(
        2,
        3,
        1,
        [3] * len(widths),
        strides,
        strides[1:],
        filters=widths,
        deep_supervision=True,
        deep_supr_num=max(len(widths) - 3, 1),
        res_block=residual,
        trans_bias=True,
    ).train()
    params = {"width": 8, "deep_supervision": True, "residual": residual}
    ours = build_seeded("dynunet", params, size).train()
    expected = theirs(images(size)).unbind(1)
    given = ours(images(size))
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(ours.eval()(images(size)), theirs.eval()(images(size)))


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        # The sides of the feature maps: 16, 8, 4; 96, 48, 24, 12, 6; 100, 50, 25, 13, 7; ...
        (16, 32, (32, 64, 128)),
        (64, 5, (5, 10, 20, 40, 80)),
        (96, 32, (32, 64, 128, 256, 512)),
        (100, 64, (64, 128, 256, 512, 512)),
        (256, 32, (32, 64, 128, 256, 512, 512, 512)),
        (320, 32, (32, 64, 128, 256, 512, 512, 512)),
        (512, 32, (32, 64, 128, 256, 512, 512, 512, 512)),
    ],
)
def test_channels_of_the_planned_stages(size, width, expected):
    assert plan_widths(size, width) == expected


def test_lowest_feature_map_of_the_padded_image_has_four_to_seven_pixels():
    for size in range(8, 600):
        assert 4 <= -(-size // 2 ** (len(plan_widths(size, 1)) - 1)) <= 7


@pytest.mark.parametrize(("size", "heads"), [(16, 2), (32, 2), (64, 3), (256, 5)])
def test_all_resolutions_but_the_two_lowest_are_supervised(size, heads):
    # 16 px: three stages; the one resolution that is left and, as the library asks, one more.
    params = {"width": 8, "deep_supervision": True}
    with torch.device("meta"):
        given = build_seeded("dynunet", params, size).train()(torch.zeros(2, 3, size, size))
    assert len(given) == heads


@pytest.mark.parametrize("params", [p for _, p in corners("dynunet")])
def test_dynunet_keeps_each_tensor_once(params):
    model = build_seeded("dynunet", params, 32)
    kept = model.state_dict()
    assert len({t.data_ptr() for t in kept.values()}) == len(kept)
    assert sum(t.numel() for t in kept.values()) == sum(p.numel() for p in model.parameters())
    torch.manual_seed(1)
    other = build("model", MONAI, ComponentConfig("dynunet", params), image_size=32)
    other.load_state_dict(kept)
    with torch.inference_mode():
        assert torch.equal(other.eval()(images(32)), model.eval()(images(32)))


def test_dynunet_has_as_many_parameters_as_by_hand():
    def block(a, b):  # two convolutions without bias, each with a norm of weight and bias
        return 9 * a * b + 9 * b * b + 4 * b

    down = block(3, 8) + block(8, 16) + block(16, 32)
    up = 4 * 32 * 16 + 16 + block(32, 16) + 4 * 16 * 8 + 8 + block(16, 8)
    model = build_seeded("dynunet", {"width": 8}, 16)
    assert sum(p.numel() for p in model.parameters()) == down + up + 8 + 1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_segresnet_drops_features_as_often_as_it_is_told(dropout):
    model = build_seeded("segresnet", {"init_filters": 8, "dropout": dropout}, 16).train()
    one, two = model(images(16)), model(images(16))
    assert torch.equal(one, two) == (dropout == 0.0)


def test_the_table_is_made_without_importing_monai(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ImportError):
        importlib.import_module("monai")
    fresh_module = runpy.run_path(lesionseg.models.monai.__file__)
    assert fresh_module["MONAI"].keys() == MONAI.keys()
