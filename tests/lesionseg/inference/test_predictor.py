"""load(run).predict(picture): the same network and the same pixels as in the evaluation."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lesionseg
from lesionseg.config import TrialConfig
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.data.mask_io import read_mask
from lesionseg.errors import InputError
from lesionseg.inference.evaluate import evaluate
from lesionseg.inference.predictor import Segmenter
from lesionseg.inference.selection import Inference
from lesionseg.models import build_model
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from tests.conftest import ROOT, write_pair
from tests.lesionseg.dark import dark_unet

CONFIG = TrialConfig(model=ComponentConfig("unet", {"width": 4, "depth": 2}), image_size=32, seed=1)
FULL = Inference(
    "flips",
    (
        ComponentConfig("threshold", {"value": 0.4}),
        ComponentConfig("crf", {"weight": 2.0, "colour": 10.0}),
        ComponentConfig("largest"),
        ComponentConfig("fill_holes"),
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study's folder with a final model that calls what is dark a lesion."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "final" / "model.safetensors"
    checkpoint.save(path, dark_unet(CONFIG).state_dict(), CONFIG)
    checkpoint.set_inference(path, FULL)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pairs of several sizes."""
    root = tmp_path_factory.mktemp("pairs")
    for i, size in enumerate([(48, 40), (200, 90), (31, 64)]):
        write_pair(root, f"im{i}", size=size, seed=i)
    return root


def test_prediction_equals_the_evaluated_mask(run, pictures, tmp_path):
    index = DatasetIndex.read(pictures)
    cache = build_cache(index, 32, tmp_path)
    segmenter = lesionseg.load(run, device="cpu")
    judged = {}
    evaluate(
        segmenter.model,
        cache,
        index.records,
        device=torch.device("cpu"),
        inference=FULL,
        on_image=lambda record, predicted, truth: judged.update({record.name: predicted}),
    )
    assert any(mask.any() and not mask.all() for mask in judged.values())
    for record in index.records:
        found = segmenter.predict(record.image)
        assert np.array_equal(found.mask, judged[record.name])
        assert found.mask.shape == read_mask(record.mask)[0].shape


def test_path_pil_image_and_array_are_equal(run, pictures):
    segmenter = lesionseg.load(run, device="cpu")
    path = pictures / "images" / "im1.png"
    with Image.open(path) as image:
        array = np.asarray(image)
        given = [path, str(path), image, array, array[:, ::-1][:, ::-1]]
        found = [segmenter.predict(each) for each in given]
    for each in found[1:]:
        assert np.array_equal(each.mask, found[0].mask)
        assert np.array_equal(each.probability, found[0].probability)
    assert found[0].mask.dtype == np.bool_
    assert found[0].probability.dtype == np.float32
    assert found[0].mask.shape == found[0].probability.shape == (90, 200)


@pytest.mark.parametrize("where", ["", "final", "final/model.safetensors"])
def test_study_final_folder_and_file_give_one_model(run, where):
    segmenter = lesionseg.load(run / where, device="cpu")
    assert segmenter.config == CONFIG
    assert segmenter.inference == FULL
    assert segmenter.image_size == 32
    assert not segmenter.model.training


def test_statistics_belong_to_the_mask(run, pictures):
    found = lesionseg.load(run, device="cpu").predict(pictures / "images" / "im0.png")
    assert found.area == found.mask.sum() > 0
    assert found.confidence == pytest.approx(found.probability[found.mask].mean(), rel=1e-5)
    with pytest.raises(AttributeError):
        found.area = 3


def test_all_image_modes_become_upright_rgb(run, tmp_path):
    """Grey, with a palette, with alpha, of 16 bits, and held sideways."""
    segmenter = lesionseg.load(run, device="cpu")
    rng = np.random.default_rng(0)
    grey = np.kron(rng.integers(0, 256, (5, 7), np.uint8), np.ones((8, 8), np.uint8))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(np.rot90(grey)).save(tmp_path / "turned.png", exif=exif)
    wanted = segmenter.predict(np.stack([grey] * 3, axis=2))
    for name in ("grey", "alpha", "palette", "wide", "turned"):
        found = segmenter.predict(tmp_path / f"{name}.png")
        assert np.array_equal(found.mask, wanted.mask), name
        assert found.mask.shape == (40, 56)


def test_large_rotated_jpeg_has_its_own_size(run, tmp_path):
    """It is decoded at a part of its size, and the axes swap."""
    exif = Image.Exif()
    exif[0x0112] = 8
    noise = np.random.default_rng(0).integers(0, 256, (400, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    assert lesionseg.load(run, device="cpu").predict(tmp_path / "a.jpg").mask.shape == (900, 400)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 50_000), (50_000, 1), (3, 40_000)])
def test_mask_has_the_images_size(run, shape):
    dark = np.full((*shape, 3), 40, np.uint8)
    found = lesionseg.load(run, device="cpu").predict(dark)
    assert found.mask.shape == found.probability.shape == shape
    assert found.mask.all()
    assert found.centre == ((shape[1] - 1) / 2, (shape[0] - 1) / 2)


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (np.zeros((4, 4), np.uint8), "an array must be uint8 [H, W, 3], RGB, got uint8 [4, 4]"),
        (np.zeros((4, 4, 3)), "an array must be uint8 [H, W, 3], RGB, got float64 [4, 4, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "an array must be uint8 [H, W, 3], RGB, got uint8 [0, "),
        (3, "an image must be a path, a PIL image or uint8 [H, W, 3], got int"),
    ],
)
def test_invalid_image_is_refused(run, picture, told):
    with pytest.raises(InputError) as caught:
        lesionseg.load(run, device="cpu").predict(picture)
    assert str(caught.value).startswith(f"predict: {told}")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: None, "no such file or folder; give a study's folder or its final/"),
        (lambda p: p.mkdir(), "no final/model.safetensors; `lesionsearch final` creates it"),
        (lambda p: p.write_text("x"), "not a safetensors file ("),
    ],
)
def test_run_without_a_model_is_refused(tmp_path, make, told):
    make(tmp_path / "run")
    with pytest.raises(InputError) as caught:
        lesionseg.load(tmp_path / "run")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_half_precision_follows_training_and_device(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lesionseg.inference.tta.amp_dtype",
        lambda device, mode: asked.append(mode) or torch.bfloat16,
    )
    model = build_model(CONFIG.model, image_size=32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    half = Segmenter(model, CONFIG).predict_probabilities(images)
    monkeypatch.undo()
    whole = Segmenter(model, CONFIG).predict_probabilities(images)
    assert asked == ["auto"]
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() < 0.05


def test_package_import_is_light():
    code = """
import sys
import lesionseg
assert not {"torch", "numpy", "PIL", "cv2"} & set(sys.modules), sorted(sys.modules)
assert callable(lesionseg.load) and callable(lesionseg.load)
assert "torch" in sys.modules
try:
    lesionseg.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise SystemExit("a name that is not there was found")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
