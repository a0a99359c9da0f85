"""export: the command writes a file that agrees with torch, or no file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
import lesionseg
from lesionseg.config import TrialConfig
from lesionseg.errors import InputError
from lesionseg.inference.onnx_export import OnnxComparison, OnnxModel
from lesionseg.inference.selection import Inference
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from search.errors import JobFailed
from search.results import onnx_export
from search.results.onnx_export import MAX_IMAGES, export_model
from tests.conftest import write_pair
from tests.lesionseg.dark import dark_unet

CONFIG = TrialConfig(model=ComponentConfig("unet", {"width": 4, "depth": 1}), image_size=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    path = folder / "final" / "model.safetensors"
    checkpoint.save(path, dark_unet(CONFIG).state_dict(), CONFIG)
    checkpoint.set_inference(
        path, Inference("none", (ComponentConfig("threshold", {"value": 0.7}),))
    )
    return folder


def invoke(*words):
    done = CliRunner().invoke(cli.app, ["export", *map(str, words)])
    return done.exit_code, done.stdout.splitlines(), done.stderr.splitlines()


def test_exported_file_predicts_like_the_model(run, tmp_path):
    code, output, errors = invoke(run, "--out", tmp_path / "deep" / "model.onnx")
    assert (code, errors, len(output)) == (0, [], 1)
    assert f"on {MAX_IMAGES} synthetic images: largest difference in probability " in output[0]
    assert output[0].endswith("Dice between the masks 1.0000")
    model = OnnxModel(tmp_path / "deep" / "model.onnx")
    write_pair(tmp_path, "a", seed=3)
    image = Image.open(tmp_path / "images" / "a.png")
    probability = model.predict_probabilities(
        np.asarray(image.resize((16, 16), Image.BILINEAR))[None]
    )
    full = Image.fromarray(probability[0]).resize(image.size, Image.BILINEAR)
    mask = np.asarray(full) > float(model.metadata["threshold"])
    expected = lesionseg.load(run, "cpu").predict(image).mask
    assert expected.any()
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.99


def test_comparison_uses_the_given_images(run, tmp_path):
    for i in range(3):
        write_pair(tmp_path, f"im{i}", seed=i)
    code, output, _ = invoke(run, "--out", tmp_path / "m.onnx", "--check", tmp_path / "images")
    assert code == 0
    assert "on 3 of the given images:" in output[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "m.onnx"], "no model or study 'nowhere'"),
        (["RUN", "--out", "m.pt"], "--out: must be a file that ends in .onnx, got 'm.pt'"),
        (["RUN", "--out", "m.onnx", "--check", "no"], "no: no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, words, message):
    code, output, errors = invoke(*[run if w == "RUN" else w for w in words])
    assert (code, output, len(errors)) == (2, [], 1)
    assert message in errors[0]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("max_difference", [2e-3, float("nan")])
def test_file_that_differs_from_torch_is_not_written(run, tmp_path, monkeypatch, max_difference):
    monkeypatch.setattr(
        onnx_export, "compare_with_torch", lambda *_: OnnxComparison(1, max_difference, 1.0)
    )
    monkeypatch.setattr(onnx_export, "export_onnx", lambda _, path, __: path.write_bytes(b"new"))
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(JobFailed, match="differs from torch by"):
        export_model(lesionseg.load(run, "cpu"), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


def test_unreadable_image_is_refused_before_writing(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match="not an image"):
        export_model(lesionseg.load(run, "cpu"), tmp_path / "m.onnx", [tmp_path / "a.png"])
    assert not (tmp_path / "m.onnx").exists()
