"""SegNet: VGG16's layers by hand, and where its unpooling puts values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import vgg16_bn

from lesionseg.models.segnet import SEGNET, SegNet
from tests.lesionseg.models._networks import (
    build_seeded,
    check_evaluation,
    check_training,
    images,
    least,
)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def counted(*channels):
    """3x3 convolutions without bias from each number of channels to the next, and batch norm."""
    return sum(9 * a * b + 2 * b for a, b in zip(channels, channels[1:], strict=False))


def test_it_trains_at_its_smallest_size_on_one_image():
    assert least(SEGNET, {"width": 5}) == 32
    assert isinstance(check_training(build_seeded(SEGNET, width=5), 32, n=1), torch.Tensor)


def test_in_evaluation_it_takes_any_multiple_of_its_stride():
    model = build_seeded(SEGNET, width=4).train()
    model(images(32))  # gives batch norm statistics to use
    check_evaluation(model, [32, 64, 96])
    assert model(torch.zeros(1, 3, 32, 96)).shape == (1, 1, 32, 96)


@pytest.mark.parametrize("size", [16, 33, 48])
def test_it_refuses_what_is_no_multiple_of_its_stride(size):
    with pytest.raises(RuntimeError, match="size"):
        build_seeded(SEGNET, width=4)(images(size))


def test_as_published_it_has_as_many_parameters_as_the_papers_layers():
    # VGG16's thirteen convolutions, the same thirteen backwards, and the classifier at 1x1.
    encoder = counted(3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    decoder = counted(512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 64)
    assert encoder + decoder + (64 + 1) == 29_472_129
    with torch.device("meta"):
        assert parameters(build_seeded(SEGNET)) == 29_472_129


def test_as_published_its_encoder_is_that_of_vgg16():
    with torch.device("meta"):
        theirs = vgg16_bn(weights=None).features
        ours = SegNet(64).encoder
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    shapes = [
        [m.weight.shape for m in net.modules() if isinstance(m, kinds)] for net in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


def test_by_default_names_of_the_weights_stay_what_they_were():
    names = list(SegNet(4).state_dict())
    assert names[:2] == ["encoder.0.0.weight", "encoder.0.1.weight"]
    assert names[-2:] == ["head.weight", "head.bias"]
    assert {"encoder.4.7.bias", "decoder.0.3.weight", "decoder.4.7.running_var"} <= set(names)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unpooling_places_every_value_where_the_maximum_was(layout):
    model = build_seeded(SEGNET, width=4).train()
    encoded, decoded, restored = {}, {}, {}
    for i in range(5):
        model.encoder[i].register_forward_hook(lambda *a, i=i: encoded.update({i: a[-1]}))
        model.decoder[i].register_forward_hook(lambda *a, i=i: decoded.update({i: a[-1]}))
        model.decoder[i].register_forward_pre_hook(lambda _, x, i=i: restored.update({i: x[0]}))
    with torch.no_grad():
        model(images(64).contiguous(memory_format=layout))
    for i in range(5):
        given = decoded[i + 1] if i < 4 else F.max_pool2d(encoded[4], 2)
        largest = F.interpolate(F.max_pool2d(encoded[i], 2), scale_factor=2, mode="nearest")
        # A value beside the maximum would stand where the encoder saw less than the maximum.
        assert not restored[i][encoded[i] < largest].any()
        torch.testing.assert_close(F.avg_pool2d(restored[i], 2) * 4, given)
        assert restored[i].any()


def test_a_single_bright_pixel_comes_back_where_it_was():
    # One bright pixel, at an odd row and an even column, goes down five levels and comes back.
    model = build_seeded(SEGNET, width=4).eval()
    restored = {}
    model.encoder[0] = nn.Conv2d(3, 4, 1, bias=False)
    nn.init.ones_(model.encoder[0].weight)
    for i in range(1, 5):
        model.encoder[i] = nn.Identity()
        model.decoder[i] = nn.Identity()
    model.decoder[0] = nn.Identity()
    model.decoder[0].register_forward_pre_hook(lambda _, x: restored.update(first=x[0]))
    picture = torch.zeros(1, 3, 32, 32)
    picture[0, 0, 21, 6] = 5.0
    with torch.inference_mode():
        model(picture)
    expected = torch.zeros(4, 32, 32)
    expected[:, 21, 6] = 5.0
    torch.testing.assert_close(restored["first"][0], expected)
