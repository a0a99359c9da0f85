"""export: every network as ONNX gives what torch gives; the file says how it is to be used."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from lesionseg.config import TrialConfig
from lesionseg.data.loader import MEAN, STD, normalise
from lesionseg.data.synthetic import render
from lesionseg.errors import InputError
from lesionseg.inference import onnx_export
from lesionseg.inference.ensemble import Ensemble
from lesionseg.inference.onnx_export import (
    OnnxComparison,
    OnnxModel,
    build_metadata,
    compare_with_torch,
    export_onnx,
)
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.selection import DEFAULT_INFERENCE, Inference
from lesionseg.models import MODELS, build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from tests.lesionseg.ensembles import write_ensemble

#: One of each kind in the quick tests; all of them in the slow ones.
QUICK = ("unet", "segnet")


def taught(name, size=64, inference=DEFAULT_INFERENCE, **params):
    """A network after a few steps on synthetic lesions."""
    torch.manual_seed(0)
    config = TrialConfig(model=ComponentConfig(name, params), image_size=size)
    model = build_model(config.model, image_size=size).train()
    samples = [render(seed, size, size) for seed in range(4)]
    images = normalise(torch.from_numpy(np.stack([s.image for s in samples])))
    masks = torch.from_numpy(np.stack([s.mask for s in samples]) > 0)[:, None].float()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(images), masks).backward()
        optimizer.step()
    return Segmenter(model, config, inference)


def small_params(name):
    """The row's parameters, at their smallest where they cost something."""
    space, small = MODELS[name].space, {"encoder": "efficientnet-b0", "width": 8, "init_filters": 8}
    return {
        key: value
        for key, value in small.items()
        if key in space and (key != "encoder" or value in space[key].choices)
    }


def lesions(n, size):
    return np.stack(
        [
            np.asarray(Image.fromarray(render(seed, 96, 128).image).resize((size, size)))
            for seed in range(n)
        ]
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small U-Net with a chain and its file."""
    chain = (ComponentConfig("threshold", {"value": 0.35}), ComponentConfig("fill_holes"))
    segmenter = taught("unet", 32, Inference("d4", chain), width=4, depth=2)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(segmenter, path, {"study": "isic"})
    return segmenter, path


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equals_torch_for_any_batch_size(exported, n):
    segmenter, path = exported
    images = lesions(n, 32)
    ours, theirs = (
        segmenter.predict_probabilities(images),
        OnnxModel(path).predict_probabilities(images),
    )
    assert ours.shape == theirs.shape == (n, 32, 32)
    assert np.abs(ours - theirs).max() < 1e-5
    assert ours.std() > 0.01  # not all the same, whatever goes in
    found = compare_with_torch(segmenter, path, images, batch_size=2)
    assert found == OnnxComparison(n, pytest.approx(np.abs(ours - theirs).max(), abs=1e-6), 1.0)


def test_file_contains_tta_and_normalisation(exported):
    """From the raw network alone, with the definitions written out."""
    segmenter, path = exported
    images = lesions(2, 32)
    x = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    x, views = x.permute(0, 3, 1, 2), []
    with torch.inference_mode():
        for turns in range(4):
            for flip in (False, True):
                view = torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1))
                back = torch.rot90(torch.sigmoid(segmenter.model(view)), -turns, (-2, -1))
                views.append(back.flip(-1) if flip else back)
    wanted = torch.stack(views).mean(0)[:, 0].numpy()
    assert np.abs(OnnxModel(path).predict_probabilities(images) - wanted).max() < 1e-5
    assert np.abs(views[0][:, 0].numpy() - wanted).max() > 1e-3


def test_metadata_describe_input_and_postprocessing(exported):
    segmenter, path = exported
    told = OnnxModel(path).metadata
    assert told == build_metadata(segmenter) | {"study": "isic"}
    assert told["format"] == "lesionsearch-onnx/1"
    assert (told["image_size"], told["channels"], told["range"]) == ("32", "RGB", "0 to 1")
    assert (float(told["threshold"]), told["tta"]) == (0.35, "d4")
    assert json.loads(told["chain"]) == [{"threshold": {"value": 0.35}}, {"fill_holes": {}}]
    assert TrialConfig.from_dict(json.loads(told["config"])) == segmenter.config


def test_file_is_valid_with_a_dynamic_batch(exported):
    _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (picture,), (given,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
        for each in (picture, given)
    ]
    assert (picture.name, given.name) == ("image", "probability")
    assert shapes[0][1:] == [3, 32, 32] and shapes[1][1:] == [1, 32, 32]
    assert isinstance(shapes[0][0], str) and shapes[0][0] == shapes[1][0]
    assert {t.data_location for t in model.graph.initializer} == {onnx.TensorProto.DEFAULT}
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx"]


def test_export_prints_nothing_and_leaves_the_model_unchanged(exported, tmp_path, capfd):
    segmenter, _ = exported
    before = {k: v.clone() for k, v in segmenter.model.state_dict().items()}
    where = {k: v.data_ptr() for k, v in segmenter.model.state_dict().items()}
    export_onnx(segmenter, tmp_path / "again.onnx")
    assert capfd.readouterr() == ("", "")
    after = segmenter.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {k: v.data_ptr() for k, v in after.items()} == where
    assert not segmenter.model.training


def check_family(name, tmp_path):
    params = small_params(name)
    size = max(64, MODELS[name].min_image_size)
    segmenter = taught(name, size, **params)
    images = lesions(4, size)
    export_onnx(segmenter, tmp_path / "model.onnx")
    found = compare_with_torch(segmenter, tmp_path / "model.onnx", images, batch_size=3)
    assert segmenter.predict_probabilities(images).std() > 1e-3
    assert found.max_difference < 1e-3
    assert found.mean_dice > 0.999


@pytest.mark.parametrize("name", QUICK)
def test_some_networks_can_be_exported(name, tmp_path):
    check_family(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n not in QUICK])
def test_all_networks_can_be_exported(name, tmp_path):
    check_family(name, tmp_path)


@pytest.mark.parametrize("tta", ["none", pytest.param("flips", marks=pytest.mark.slow)])
def test_an_ensemble_is_one_file_with_two_outputs(tta, tmp_path):
    whole, _ = write_ensemble(tmp_path)
    model, config = checkpoint.load(whole)
    segmenter, path = Segmenter(model, config, Inference(tta)), tmp_path / "model.onnx"
    export_onnx(segmenter, path)
    images, exported = lesions(5, 32), OnnxModel(path)
    wanted = segmenter.predict_outputs(images)
    probability, uncertainty = exported.predict_outputs(images)
    assert np.abs(probability - np.stack([o.probability for o in wanted])).max() < 1e-5
    assert np.abs(uncertainty - np.stack([o.uncertainty for o in wanted])).max() < 1e-5
    assert uncertainty.shape == (5, 32, 32) and uncertainty.max() > 1e-3
    assert compare_with_torch(segmenter, path, images, batch_size=2).max_difference < 1e-5
    assert [o.name for o in onnx.load(path).graph.output] == ["probability", "uncertainty"]
    members = json.loads(exported.metadata["members"])
    assert [(m["model"], m["weight"]) for m in members] == [("unet", 0.75), ("segnet", 0.25)]
    assert [TrialConfig.from_dict(m["config"]) for m in members] == list(model.configs)
    assert TrialConfig.from_dict(json.loads(exported.metadata["config"])) == config


def test_a_difference_in_uncertainty_is_found(tmp_path):
    """The file of an ensemble of other weights but the same mean: both members are one network."""
    _, (single, _) = write_ensemble(tmp_path)
    model, config = checkpoint.load(single)
    same = Ensemble([model, model], [config] * 2, (0.5, 0.5))
    export_onnx(Segmenter(same, config), tmp_path / "model.onnx")

    class Apart(Ensemble):
        def member_probabilities(self, images):
            shift = torch.tensor([0.01, -0.01]).reshape(2, 1, 1, 1, 1)
            return super().member_probabilities(images) + shift

    apart = Segmenter(Apart([model, model], [config] * 2, (0.5, 0.5)), config)
    found = compare_with_torch(apart, tmp_path / "model.onnx", lesions(2, 32))
    assert found.max_difference == pytest.approx(0.01, abs=1e-4)


class Unexportable(torch.nn.Module):
    """Has data-dependent control flow."""

    def forward(self, images):
        return images[:, :1] * (2.0 if images.mean().item() > 0 else 1.0)


def test_unsupported_network_is_named_in_one_line(tmp_path):
    segmenter = Segmenter(
        Unexportable(), TrialConfig(model=ComponentConfig("smp_dpt"), image_size=32)
    )
    with pytest.raises(InputError) as caught:
        export_onnx(segmenter, tmp_path / "model.onnx")
    assert str(caught.value).startswith("export: smp_dpt cannot be written as ONNX: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_missing_extra_is_named(monkeypatch, exported, tmp_path):
    monkeypatch.setattr(
        onnx_export, "find_spec", lambda name: None if name == "onnxruntime" else name
    )
    with pytest.raises(InputError, match=r"needs onnxruntime; install .*'lesionsearch\[onnx\]'"):
        export_onnx(exported[0], tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 50])
def test_other_file_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="ONNX Runtime cannot run it"):
        OnnxModel(tmp_path / "model.onnx")
