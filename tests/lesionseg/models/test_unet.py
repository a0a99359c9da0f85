"""U-Net: its layers by hand, and each thing that can be switched on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from lesionseg.errors import InputError
from lesionseg.models.unet import (
    NORMS,
    UNET,
    AttentionGate,
    ResidualBlock,
    UNet,
    group_norm,
    instance_norm,
)
from tests.lesionseg.models._networks import (
    build_seeded,
    check_evaluation,
    check_training,
    corners,
    images,
    least,
)

KINDS = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "instance": nn.InstanceNorm2d}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def small(**params):
    return build_seeded(UNET, **{"width": 4, "depth": 2, **params})


@pytest.mark.parametrize("depth", UNET.space["depth"].extremes())
@pytest.mark.parametrize("norm", UNET.space["norm"].choices)
def test_every_corner_of_its_space_trains_at_its_smallest_size(norm, depth):
    for params in corners(UNET, width=4, depth=depth, norm=norm):
        model = build_seeded(UNET, **params)
        check_training(model, least(UNET, params))
        check_evaluation(model, [least(UNET, params)])


@pytest.mark.parametrize("params", [{}, {"residual": True, "attention": True}])
def test_it_takes_any_multiple_of_its_stride(params):
    model = small(**params)
    check_evaluation(model, [4, 8, 12, 20, 32])
    wide = torch.zeros(1, 3, 8, 20)
    assert model(wide).shape == (1, 1, 8, 20)


@pytest.mark.parametrize("depth", [1, 3])
def test_it_refuses_what_is_no_multiple_of_its_stride(depth):
    model = small(depth=depth)
    stride = UNET.stride(**UNET.resolve({"depth": depth}))
    assert stride == 2**depth
    for size in (stride + 1, 3 * stride // 2, 2 * stride - 1):
        if size % stride:
            with pytest.raises(RuntimeError, match="size"):
                model(images(size))


def test_the_published_width_and_depth_have_as_many_parameters_as_the_papers_layers():
    # Figure 1 of arXiv:1505.04597: the 3x3 convolutions, the up-convolutions, the 1x1 head; here
    # with three channels in, one out, and a batch norm instead of each 3x3 convolution's bias.
    convs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    convs += [(256, 512), (512, 512), (512, 1024), (1024, 1024)]
    convs += [(1024, 512), (512, 512), (512, 256), (256, 256)]
    convs += [(256, 128), (128, 128), (128, 64), (64, 64)]
    ups = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    assert len(convs) + len(ups) + 1 == 23  # as the paper counts them
    expected = sum(9 * a * b + 2 * b for a, b in convs)
    expected += sum(4 * a * b + b for a, b in ups) + (64 * 1 + 1)
    assert expected == 31_037_633
    with torch.device("meta"):
        assert parameters(build_seeded(UNET, width=64, depth=4)) == expected


def test_the_smallest_one_has_as_many_parameters_as_by_hand():
    stem = 9 * 3 * 4 + 9 * 4 * 4 + 16  # 268
    down = 9 * 4 * 8 + 9 * 8 * 8 + 32  # 896
    up = 2 * 2 * 8 * 4 + 4  # 132
    merge = 9 * 8 * 4 + 9 * 4 * 4 + 16  # 448: what comes up beside what was kept
    assert stem + down + up + merge + 5 == 1749
    assert parameters(small(depth=1)) == 1749
    # A gate compares two channels: 2x2 of the skip's 4, 1x1 of the gate's 8, then one number.
    assert parameters(small(depth=1, attention=True)) == 1749 + (4 * 4 * 2) + (8 * 2 + 2) + (2 + 1)
    # Projections of stem, down and merge, each with a norm.
    shortcuts = (3 * 4 + 8) + (4 * 8 + 16) + (8 * 4 + 8)
    assert parameters(small(depth=1, residual=True)) == 1749 + shortcuts
    # Levels of 8 and 16 channels between the bottom and full size.
    both = {"width": 4, "depth": 3}
    extra = parameters(build_seeded(UNET, **both, deep_supervision=True)) - parameters(
        build_seeded(UNET, **both)
    )
    assert extra == (8 + 1) + (16 + 1)
    for norm in NORMS:
        assert parameters(small(depth=1, norm=norm)) == 1749


def drawn_in_order(seed):
    """The weights of width 4 and depth 2 by their names, drawn one layer after the other."""
    torch.manual_seed(seed)
    blocks = [("stem", 3, 4), ("down.0.1", 4, 8), ("down.1.1", 8, 16)]
    late = [("merge.0", 16, 8), ("merge.1", 8, 4)]
    state = {}

    def draw(name, layer):
        state.update({f"{name}.{key}": value for key, value in layer.state_dict().items()})

    def draw_blocks(blocks):
        for name, a, b in blocks:
            for place, channels in ((0, a), (3, b)):
                draw(f"{name}.{place}", nn.Conv2d(channels, b, 3, bias=False))
                draw(f"{name}.{place + 1}", nn.BatchNorm2d(b))

    draw_blocks(blocks)
    draw("up.0", nn.ConvTranspose2d(16, 8, 2, stride=2))
    draw("up.1", nn.ConvTranspose2d(8, 4, 2, stride=2))
    draw_blocks(late)
    draw("head", nn.Conv2d(4, 1, 1))
    return state


def test_by_default_names_and_weights_of_a_seed_stay_what_they_were():
    expected, after = drawn_in_order(7), torch.get_rng_state()
    state = build_seeded(UNET, 7, width=4, depth=2).state_dict()
    assert torch.equal(torch.get_rng_state(), after)
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_step_without_dropout_draws_nothing():
    model = small().train()
    before = torch.get_rng_state()
    model(images(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_gates_and_further_heads_leave_the_other_weights_of_a_seed_alone():
    plain, more = small(), small(depth=2, attention=True, deep_supervision=True, dropout=0.5)
    extra = more.state_dict()
    assert all(torch.equal(extra.pop(k), value) for k, value in plain.state_dict().items())
    assert {name.split(".")[0] for name in extra} == {"gates", "extra_heads"}


def test_with_a_depth_of_one_it_computes_what_its_layers_say():
    model = small(depth=1).train()
    model(images(8))  # gives batch norm statistics to use
    state, batch = model.eval().state_dict(), images(8, seed=1)

    def block(x, name):
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, state[f"{name}.{conv}.weight"], padding=1)
            keys = ("running_mean", "running_var", "weight", "bias")
            x = F.batch_norm(x, *(state[f"{name}.{norm}.{key}"] for key in keys)).clamp(min=0)
        return x

    top = block(batch, "stem")
    bottom = block(F.max_pool2d(top, 2), "down.0.1")
    risen = F.conv_transpose2d(bottom, state["up.0.weight"], state["up.0.bias"], stride=2)
    merged = block(torch.cat([top, risen], dim=1), "merge.0")
    expected = F.conv2d(merged, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", UNET.space["norm"].choices)
def test_it_has_the_norm_that_was_asked_for_and_no_other(norm, residual):
    norms = [m for m in small(norm=norm, residual=residual).modules() if "Norm" in str(type(m))]
    assert {type(m) for m in norms} == {KINDS[norm]}
    assert len(norms) == 5 * (3 if residual else 2)
    assert all(m.weight is not None and m.bias is not None for m in norms)


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 4), (5, 5), (8, 8), (9, 3), (11, 1), (12, 6), (26, 2), (512, 8)]
)
def test_groups_are_eight_or_the_largest_divisor_below(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_instance_norm_looks_at_one_channel_of_one_picture():
    x = images(6) * 5 + 3
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(instance_norm(3)(x), (x - mean) / (var + 1e-5).sqrt())


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_instance_norm_asks_for_twice_the_size(depth):
    params = {"width": 4, "depth": depth, "norm": "instance"}
    assert UNET.stride(**UNET.resolve(params)) == 2 ** (depth + 1)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        build_seeded(UNET, **params).train()(images(2**depth))


def test_group_norm_takes_a_batch_of_one_at_its_smallest_size():
    params = {"width": 4, "depth": 1, "norm": "group"}
    assert least(UNET, params) == 4
    check_training(build_seeded(UNET, **params), 4, n=1)
    with pytest.raises(ValueError, match="more than 1 value"):
        build_seeded(UNET, **params).train()(images(2, 1))


def test_a_residual_block_is_that_of_torchvision():
    torch.manual_seed(0)
    ours = ResidualBlock(6, 10).eval()
    shortcut = nn.Sequential(nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10))
    theirs = BasicBlock(6, 10, downsample=shortcut).eval()
    names = {"body.0": "conv1", "body.1": "bn1", "body.3": "conv2", "body.4": "bn2"}
    names |= {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1"}
    state = {k: torch.rand_like(v, dtype=torch.float) for k, v in ours.state_dict().items()}
    ours.load_state_dict(state)
    theirs.load_state_dict(
        {
            f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
            for key, value in state.items()
        }
    )
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_residual_block_that_keeps_its_channels_adds_the_input_itself():
    block = ResidualBlock(5, 5).eval()
    nn.init.zeros_(block.body[3].weight)
    x = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(min=0))
    assert not list(block.shortcut.parameters())


def test_a_gate_weighs_as_its_equation_says():
    torch.manual_seed(0)
    gate = AttentionGate(4, 8)
    skip, coarse = torch.randn(3, 4, 2, 2), torch.randn(3, 8, 1, 1)
    of_skip = torch.einsum("nchw,dchw->nd", skip, gate.of_skip.weight)
    of_gate = coarse.flatten(1) @ gate.of_gate.weight.flatten(1).T + gate.of_gate.bias
    seen = (of_skip + of_gate).clamp(min=0) @ gate.psi.weight.flatten(1).T + gate.psi.bias
    weight = 1 / (1 + (-seen).exp())
    torch.testing.assert_close(gate(skip, coarse), skip * weight[:, :, None, None])


@pytest.mark.parametrize(("bias", "share"), [(50.0, 1.0), (-50.0, 0.0)])
def test_a_gate_passes_everything_or_nothing(bias, share):
    gate = AttentionGate(4, 8)
    nn.init.constant_(gate.psi.bias, bias)
    skip = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(gate(skip, torch.randn(2, 8, 4, 4)), skip * share)


def test_open_gates_change_nothing():
    plain, gated = small().eval(), small(attention=True).eval()
    for gate in gated.gates:
        nn.init.constant_(gate.psi.bias, 50.0)
    torch.testing.assert_close(gated(images(16)), plain(images(16)))
    for gate in gated.gates:
        nn.init.constant_(gate.psi.bias, -50.0)
    assert not torch.allclose(gated(images(16)), plain(images(16)))


@pytest.mark.parametrize(("depth", "extra"), [(2, 1), (5, 3)])
def test_deep_supervision_gives_at_most_three_more_in_training(depth, extra):
    model = small(depth=depth, deep_supervision=True)
    given = check_training(model, 2**depth)
    assert isinstance(given, tuple)
    assert len(given) == 1 + extra
    check_evaluation(model, [2**depth])


def test_with_a_depth_of_one_there_is_no_level_to_supervise():
    assert isinstance(check_training(small(depth=1, deep_supervision=True), 8), torch.Tensor)


def test_supervised_levels_come_from_fine_to_coarse():
    model = small(depth=4, deep_supervision=True).train()
    sizes = []
    for head in model.extra_heads:
        head.register_forward_hook(lambda _, inputs, out: sizes.append((*inputs[0].shape[1:],)))
    before = model(images(32))
    assert sizes == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    heads = [model.head, *model.extra_heads]
    with torch.no_grad():
        for by, head in enumerate(heads, start=1):
            head.bias += by
    after = model(images(32))
    for by, (a, b) in enumerate(zip(after, before, strict=True), start=1):
        torch.testing.assert_close(a, b + by)


def test_the_main_logits_are_the_same_with_deep_supervision_and_without():
    main, *_ = small(deep_supervision=True).train()(images(16))
    torch.testing.assert_close(main, small().train()(images(16)))


@pytest.mark.parametrize(("depth", "channels"), [(1, [8]), (2, [8, 16]), (4, [32, 64])])
def test_dropout_drops_whole_channels_of_the_two_deepest_levels(depth, channels):
    model = small(depth=depth, dropout=0.5).train()
    seen = []
    for layer in model.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model(images(32))
    assert [out.shape[1] for _, out in seen] == channels
    for before, after in seen:
        gone = (after == 0).all((2, 3))
        torch.testing.assert_close(after[~gone], 2 * before[~gone])
    last_before, last_after = seen[-1]
    assert ((last_after == 0).all((2, 3)) & (last_before != 0).any((2, 3))).any()


def test_dropout_is_off_in_evaluation():
    torch.testing.assert_close(small(dropout=0.5).eval()(images(16)), small().eval()(images(16)))


def test_what_a_study_leaves_alone_is_off_by_default():
    assert UNET.fixed_by_default == set(UNET.space) - {"width", "depth"}
    with pytest.raises(InputError, match=r"^norm must be one of its choices, got 'layer'"):
        UNET.resolve({"norm": "layer"})
    assert UNET.resolve({}) == {
        "width": 32,
        "depth": 4,
        "norm": "batch",
        "residual": False,
        "attention": False,
        "deep_supervision": False,
        "dropout": 0.0,
    }
    plain, same = UNet(4, 1), build_seeded(UNET, width=4, depth=1)
    assert str(plain) == str(same)
