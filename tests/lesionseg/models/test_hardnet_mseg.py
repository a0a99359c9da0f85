"""HarDNet-MSEG: its links and layers by hand, what its blocks see, and its decoder's shape."""

import pytest
import torch
from torch import nn

from lesionseg.models.hardnet_mseg import (
    HARDNET_MSEG,
    DenseAggregation,
    HarDBlock,
    HarDNet,
    ReceptiveField,
    layer_width,
    links,
)
from tests.lesionseg.models._networks import (
    build_seeded,
    check_evaluation,
    check_training,
    images,
    least,
)

LAYERS = (8, 16, 16, 16, 4)
GROWTH = (14, 16, 20, 40, 160)
OUTPUTS = (128, 256, 320, 640, 1024)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def conv(inputs, outputs, area):
    """A convolution without bias, and a batch norm."""
    return area * inputs * outputs + 2 * outputs


def block_by_hand(inputs, layers, growth):
    """Parameters of a block and the channels that it gives, from the paper's rules."""
    widths, total = {0: inputs}, 0
    for layer in range(1, layers + 1):
        spans = [span for span in (1, 2, 4, 8, 16) if layer % span == 0]
        widths[layer] = int(int(growth * 1.7 ** (len(spans) - 1) + 1) / 2) * 2
        total += conv(sum(widths[layer - span] for span in spans), widths[layer], 9)
    return total, sum(w for n, w in widths.items() if n % 2 == 1 or n == layers)


def backbone_by_hand():
    total, channels = conv(3, 32, 9) + conv(32, 64, 9), 64
    for layers, growth, outputs in zip(LAYERS, GROWTH, OUTPUTS, strict=True):
        dense, given = block_by_hand(channels, layers, growth)
        total += dense + conv(given, outputs, 1)
        channels = outputs
    return total


def decoder_by_hand():
    total = 0
    for inputs in OUTPUTS[2:]:
        total += 5 * conv(inputs, 32, 1)  # the first of four branches, and the shortcut
        total += sum(2 * conv(32, 32, reach) + conv(32, 32, 9) for reach in (3, 5, 7))
        total += conv(4 * 32, 32, 9)
    total += 4 * conv(32, 32, 9) + 2 * conv(64, 64, 9) + 2 * conv(96, 96, 9)
    return total + 96 + 1


def test_with_its_classifier_the_backbone_has_as_many_parameters_as_published():
    assert backbone_by_hand() + 1024 * 1000 + 1000 == 17_565_348
    with torch.device("meta"):
        assert parameters(HarDNet()) + parameters(nn.Linear(1024, 1000)) == 17_565_348


def test_it_has_as_many_parameters_as_by_hand():
    assert backbone_by_hand() + decoder_by_hand() == 17_423_837
    with torch.device("meta"):
        assert parameters(build_seeded(HARDNET_MSEG)) == 17_423_837


@pytest.mark.parametrize(
    ("layer", "taken"),
    [
        (1, [0]),
        (2, [1, 0]),
        (3, [2]),
        (4, [3, 2, 0]),
        (6, [5, 4]),
        (8, [7, 6, 4, 0]),
        (12, [11, 10, 8]),
        (16, [15, 14, 12, 8, 0]),
    ],
)
def test_a_layer_takes_those_at_powers_of_two_before_it(layer, taken):
    assert links(layer) == taken


@pytest.mark.parametrize(
    ("layer", "growth", "width"),
    # 23.8 -> 24, 40.46 -> 40, 68.782 -> 68; 27.2 -> 28; 272
    [(1, 14, 14), (2, 14, 24), (4, 14, 40), (8, 14, 68), (7, 14, 14), (6, 16, 28), (2, 160, 272)],
)
def test_a_layers_width_grows_with_its_links_and_is_even(layer, growth, width):
    assert layer_width(layer, growth) == width


class Recorder(nn.Module):
    """Gives its own number in each of its channels, and keeps what it was given."""

    def __init__(self, number, width):
        super().__init__()
        self.number, self.width = number, width

    def forward(self, features):
        self.seen = features[0, :, 0, 0].tolist()
        return torch.full((1, self.width, 2, 2), float(self.number))


@pytest.mark.parametrize("layers", [4, 5, 8])
def test_a_block_joins_its_links_in_order_and_gives_odd_layers_and_the_last(layers):
    block = HarDBlock(3, layers, 4)
    widths = [3, *(layer_width(n, 4) for n in range(1, layers + 1))]
    block.layers = nn.ModuleList(Recorder(n, widths[n]) for n in range(1, layers + 1))
    given = block(torch.zeros(1, 3, 2, 2))

    def numbers(wanted):
        return [float(n) for n in wanted for _ in range(widths[n])]

    for layer in block.layers:
        assert layer.seen == numbers(links(layer.number))
    expected = [n for n in range(1, layers + 1) if n % 2 == 1 or n == layers]
    assert given[0, :, 0, 0].tolist() == numbers(expected)
    assert given.shape[1] == block.outputs


def test_its_features_have_the_published_channels_and_strides():
    with torch.device("meta"):
        features = HarDNet()(torch.zeros(2, 3, 128, 64))
    assert [tuple(f.shape) for f in features] == [
        (2, 128, 32, 16),
        (2, 256, 16, 8),
        (2, 320, 16, 8),
        (2, 640, 8, 4),
        (2, 1024, 4, 2),
    ]


@pytest.mark.parametrize(("branch", "span"), [(0, 1), (1, 9), (2, 15), (3, 21)])
def test_a_branch_sees_three_times_its_reach(branch, span):
    # A 3x3 whose taps lie r apart, each the middle of r pixels: 3r in all.
    field = ReceptiveField(2, 4).eval()
    for layer in field.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    point = torch.zeros(1, 2, 41, 41)
    point[:, :, 20, 20] = 1.0
    seen = field.branches[branch](point)[0, 0].nonzero()
    assert seen.min(0).values.tolist() == [20 - span // 2] * 2
    assert seen.max(0).values.tolist() == [20 + span // 2] * 2
    assert len(seen) == span**2


def test_a_receptive_field_adds_its_shortcut_before_the_relu():
    field = ReceptiveField(3, 4).eval()
    nn.init.zeros_(field.join[0].weight)
    x = torch.randn(2, 3, 6, 6)
    expected = torch.einsum("nchw,dc->ndhw", x, field.shortcut[0].weight[:, :, 0, 0])
    expected = (expected / (1 + 1e-5) ** 0.5).clamp(min=0)
    torch.testing.assert_close(field(x), expected)


def decoder_and_features():
    torch.manual_seed(0)
    decoder = DenseAggregation(4).eval().double()
    return decoder, [torch.randn(1, 4, size, size).double() for size in (8, 4, 2)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_decoder_is_affine_in_each_of_its_features(which):
    # Products of different features and convolutions without activation; no square of one.
    decoder, features = decoder_and_features()

    def at(scale):
        scaled = [f * scale if i == which else f for i, f in enumerate(features)]
        return decoder(*scaled)

    assert at(1.0).shape == (1, 1, 8, 8)
    assert not torch.allclose(at(1.0), at(0.0))
    torch.testing.assert_close(at(3.0) - at(2.0), at(1.0) - at(0.0))


@pytest.mark.parametrize("silent", [1, 2])
def test_a_shallow_feature_counts_only_where_the_deeper_ones_do(silent):
    decoder, features = decoder_and_features()
    features[silent] = torch.zeros_like(features[silent])
    shallow = torch.randn_like(features[0])
    torch.testing.assert_close(decoder(*features), decoder(shallow, *features[1:]))


def test_its_logits_are_interpolated_from_a_stride_of_eight():
    model = build_seeded(HARDNET_MSEG).eval()
    coarse = torch.randn(1, 1, 8, 8)
    shapes = []
    model.decoder.register_forward_hook(lambda *args: shapes.append(args[-1].shape) or coarse)
    with torch.inference_mode():
        logits = model(images(64, 1))
    assert shapes == [coarse.shape]
    # By hand: row 20 lies between the middles of coarse rows 2 and 3 (19.5 and 27.5), row 0
    # above the first one, column 63 behind the last one.
    inner = 15 / 16 * coarse[0, 0, 2] + 1 / 16 * coarse[0, 0, 3]
    torch.testing.assert_close(logits[0, 0, 20, 63], inner[-1])
    torch.testing.assert_close(logits[0, 0, 20, 12], inner[1] * 15 / 16 + inner[2] / 16)
    torch.testing.assert_close(logits[0, 0, 0, 63], coarse[0, 0, 0, -1])


def test_it_trains_at_its_smallest_size_on_one_image():
    assert HARDNET_MSEG.stride() == 32
    assert least(HARDNET_MSEG, {}) == 64
    assert isinstance(check_training(build_seeded(HARDNET_MSEG), 64, n=1), torch.Tensor)


def test_below_its_smallest_size_one_picture_leaves_batch_norm_a_single_value():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        build_seeded(HARDNET_MSEG).train()(images(32, 1))


def test_in_evaluation_it_takes_any_multiple_of_its_stride():
    model = build_seeded(HARDNET_MSEG).train()
    model(images(64))  # gives batch norm statistics to use
    check_evaluation(model, [32, 96])
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 96)).shape == (1, 1, 32, 96)


@pytest.mark.parametrize("size", [48, 72])
def test_it_refuses_what_is_no_multiple_of_its_stride(size):
    with pytest.raises(RuntimeError, match="size"):
        build_seeded(HARDNET_MSEG).eval()(images(size))
