"""The conversion of images in front of encoders that expect another normalisation."""

import copy

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from lesionseg.config import TrialConfig
from lesionseg.data.loader import MEAN, STD, normalise
from lesionseg.data.synthetic import render
from lesionseg.inference.onnx_export import compare_with_torch, export_onnx
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.selection import DEFAULT_INFERENCE
from lesionseg.models import build_model, multiply_adds
from lesionseg.models.encoders import ENCODERS, TRANSFORMERS
from lesionseg.models.normalisation import InputNormalisation, normalise_input
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from lesionseg.training.ema import ModelEma

#: Encoders whose weights expect 0.5 and 0.5, as their authors trained them.
HALF = {
    "tu-tf_efficientnet_lite0",
    "tu-tf_efficientnet_lite1",
    "tu-tf_efficientnet_lite2",
    "tu-vit_tiny_patch16_224",
    "tu-vit_small_patch16_224",
}

#: Networks of both kinds of encoders that need the conversion.
NETWORKS = {
    "smp_linknet": {"encoder": "tu-tf_efficientnet_lite0", "weights": "none"},
    "smp_dpt": {"encoder": "tu-vit_tiny_patch16_224", "weights": "none", "decoder_width": 0.25},
}


def pixels(size=32, n=2):
    return np.stack([render(seed, size, size).image for seed in range(n)])


def config_of(name):
    return TrialConfig(model=ComponentConfig(name, NETWORKS[name]), image_size=32)


def build_seeded(name):
    torch.manual_seed(0)
    return build_model(config_of(name).model, image_size=32)


def test_images_of_the_loader_are_converted_exactly():
    shown = pixels()
    converted = InputNormalisation((0.5, 0.4, 0.3), (0.5, 0.25, 1.0))(
        normalise(torch.from_numpy(shown))
    )
    expected = (shown / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.25, 1.0]
    np.testing.assert_allclose(converted.permute(0, 2, 3, 1).numpy(), expected, atol=2e-6)


def test_the_loader_normalises_as_is_assumed():
    assert np.allclose(np.divide(MEAN, 255), timm.data.IMAGENET_DEFAULT_MEAN)
    assert np.allclose(np.divide(STD, 255), timm.data.IMAGENET_DEFAULT_STD)


@pytest.mark.parametrize("encoder", ENCODERS + TRANSFORMERS)
def test_encoders_have_the_conversion_only_where_they_expect_another(encoder):
    model = nn.Module()
    model.encoder = nn.Identity()
    normalise_input(model, encoder)
    converted = model.encoder(torch.ones(1, 3, 1, 1)).flatten()
    shown = torch.tensor(STD) / 255 + torch.tensor(MEAN) / 255
    expected = shown * 2 - 1 if encoder in HALF else torch.ones(3)
    torch.testing.assert_close(converted, expected)
    assert list(model.parameters()) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_the_encoder_sees_converted_images(name):
    model = build_seeded(name).eval()
    seen = []
    model.encoder.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    if name == "smp_dpt":  # which calls another method of timm's network
        model.encoder.model.patch_embed.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
    with torch.inference_mode():
        model(normalise(torch.from_numpy(pixels())))
    expected = pixels() / 127.5 - 1
    np.testing.assert_allclose(seen[0].permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_keeps_the_conversion(name, tmp_path):
    model, path = build_seeded(name).eval(), tmp_path / "model.safetensors"
    model.encoder.normalisation.shift += 0.125  # unlike that of a new network
    checkpoint.save(path, model.state_dict(), config_of(name))
    loaded, _ = checkpoint.load(path)
    x = normalise(torch.from_numpy(pixels()))
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_without_the_conversion_is_loaded_with_the_identity(name, tmp_path):
    """Such a file is of a network that was trained on images as the loader gives them."""
    model, path = build_seeded(name), tmp_path / "model.safetensors"
    state = {k: v for k, v in model.state_dict().items() if "normalisation" not in k}
    assert len(state) == len(model.state_dict()) - 2
    checkpoint.save(path, state, config_of(name))
    loaded, _ = checkpoint.load(path)
    before = copy.deepcopy(model).eval()
    before.encoder._forward_pre_hooks.clear()
    x = normalise(torch.from_numpy(pixels()))
    with torch.inference_mode():
        assert torch.equal(loaded(x), before(x))
    # Saved again, it is complete.
    checkpoint.save(path, loaded.state_dict(), config_of(name))
    assert load_file(path)["encoder.normalisation.scale"].tolist() == [[[1.0]]] * 3


def test_copies_averages_and_costs_include_the_conversion():
    model = build_seeded("smp_linknet")
    ema = ModelEma(model, 0.9)
    for _ in range(3):
        ema.update(model)
    model.encoder.normalisation.scale.zero_()
    x = normalise(torch.from_numpy(pixels()))
    with torch.inference_mode():
        assert not torch.equal(ema.model(x), model.eval()(x))
        fresh = build_seeded("smp_linknet").encoder.normalisation
        assert torch.equal(ema.model.encoder.normalisation.scale, fresh.scale)
    assert multiply_adds(model, 32) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_file_includes_the_conversion(name, tmp_path):
    model = build_seeded(name)
    with torch.no_grad():
        for seed in range(3):  # batch-norm statistics of such images
            model.train()(normalise(torch.from_numpy(pixels(n=4 + seed))))
    segmenter = Segmenter(model.eval(), config_of(name), DEFAULT_INFERENCE)
    export_onnx(segmenter, tmp_path / "model.onnx")
    found = compare_with_torch(segmenter, tmp_path / "model.onnx", pixels(n=4))
    assert found.max_difference < 1e-4
    assert segmenter.predict_probabilities(pixels()).std() > 1e-4
