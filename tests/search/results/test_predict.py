"""predict: every image has its mask, its overlay and its row; unusable images are reported."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score
from typer.testing import CliRunner

import cli
import lesionseg
from lesionseg.config import TrialConfig
from lesionseg.data.mask_io import read_mask
from lesionseg.errors import InputError
from lesionseg.inference.selection import Inference
from lesionseg.space import ComponentConfig
from lesionseg.training import checkpoint
from lesionseg.viz.overlays import PREDICTED_COLOUR, draw_outlines
from search.errors import JobFailed
from search.results import predict
from search.results.predict import write_predictions
from tests.conftest import ROOT, write_pair
from tests.lesionseg.dark import dark_unet
from tests.lesionseg.data.test_image_io import STORED, with_orientation
from tests.lesionseg.ensembles import write_ensemble

CONFIG = TrialConfig(model=ComponentConfig("unet", {"width": 4, "depth": 1}), image_size=16, seed=1)
HERE = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study's folder with a model that segments dark pixels."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "final" / "model.safetensors"
    checkpoint.save(path, dark_unet(CONFIG).state_dict(), CONFIG)
    checkpoint.set_inference(path, Inference("flips", (ComponentConfig("largest"),)))
    return folder


@pytest.fixture
def pairs(tmp_path):
    """Nine pairs of three sizes."""
    for i in range(9):
        write_pair(tmp_path / "data", f"im{i}", size=[(48, 40), (200, 90), (31, 64)][i % 3], seed=i)
    return tmp_path / "data"


@pytest.fixture
def segmenter(run):
    return lesionseg.load(run, device="cpu")


def images_in(pairs):
    return sorted((pairs / "images").iterdir())


def masks_in(pairs):
    return {p: pairs / "masks" / p.name for p in images_in(pairs)}


def rows_of(out):
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def invoke(*words):
    """Return exit code, output lines and error lines of a command."""
    done = CliRunner().invoke(cli.app, [str(w) for w in words])
    return done.exit_code, done.stdout.splitlines(), done.stderr.splitlines()


def test_each_image_has_mask_overlay_and_row(segmenter, pairs, tmp_path):
    images, out = images_in(pairs), tmp_path / "out"
    summary = write_predictions(segmenter, images, out, masks=masks_in(pairs), batch_size=2)
    rows = rows_of(out)
    assert list(rows[0]) == [
        "file", "mask", "width", "height", "area", "share", "centre_x", "centre_y", "confidence",
        "touches_border", "is_empty", "has_several_lesions", "dice",
    ]  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == ["masks", "overlays", "predictions.csv"]
    assert [Path(r["file"]) for r in rows] == images
    for row, image in zip(rows, images, strict=True):
        prediction = segmenter.predict(image)
        with Image.open(out / row["mask"]) as stored:
            mask = np.asarray(stored)
            assert stored.mode == "L" and stored.format == "PNG"
        assert np.array_equal(mask, prediction.mask * np.uint8(255))
        assert (int(row["height"]), int(row["width"])) == mask.shape == Image.open(image).size[::-1]
        assert int(row["area"]) == (mask == 255).sum() > 0
        assert float(row["share"]) == pytest.approx((mask == 255).mean())
        y, x = np.nonzero(mask)
        assert float(row["centre_x"]) == pytest.approx(x.mean())
        assert float(row["centre_y"]) == pytest.approx(y.mean())
        assert float(row["confidence"]) == prediction.confidence
        flags = [row[k] for k in ("touches_border", "is_empty", "has_several_lesions")]
        assert flags == [
            str(int(v)) for v in (prediction.touches_border, False, prediction.has_several_lesions)
        ]
        truth, _ = read_mask(pairs / "masks" / image.name)
        assert float(row["dice"]) == pytest.approx(f1_score(truth.ravel(), mask.ravel() > 0))
        with Image.open(out / "overlays" / f"{image.stem}.jpg") as drawn:
            assert drawn.size == Image.open(image).size
    assert summary.images == 9 and summary.unusable == summary.empty == 0
    assert summary.dice == pytest.approx([float(r["dice"]) for r in rows])
    assert np.mean(summary.dice) > 0.7


def test_a_true_mask_made_on_the_image_as_stored_is_turned(segmenter, tmp_path):
    write_pair(tmp_path, "a", size=(200, 90), seed=1)
    image, mask = tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png"
    truth = read_mask(mask)[0]
    for path, orientation in ((image, 6), (mask, 1)):
        with_orientation(path, STORED[6](np.asarray(Image.open(path))), orientation)
    summary = write_predictions(segmenter, [image], tmp_path / "out", masks={image: mask})
    predicted = segmenter.predict(image).mask
    assert predicted.shape == truth.shape
    assert summary.dice == pytest.approx([f1_score(truth.ravel(), predicted.ravel())])


def test_overlay_outline_is_on_the_edge_of_the_mask(segmenter, tmp_path):
    write_pair(tmp_path, "large", size=(900, 700), seed=2)
    write_predictions(segmenter, [tmp_path / "images" / "large.png"], tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out/overlays/large.jpg")).astype(int)
    assert drawn.shape == (373, 480, 3)
    mask = np.asarray(Image.open(tmp_path / "out/masks/large.png").resize((480, 373))) > 0
    marked = np.abs(drawn - PREDICTED_COLOUR).max(axis=2) < 60
    assert marked.sum() > 100
    edge = mask ^ np.roll(mask, 1, 0) | mask ^ np.roll(mask, 1, 1)
    near = np.zeros_like(edge)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            near |= np.roll(edge, (dy, dx), (0, 1))
    assert (marked & near).sum() / marked.sum() > 0.9


def test_image_without_lesion_has_empty_mask_and_empty_cells(segmenter, tmp_path):
    Image.new("RGB", (30, 20), "white").save(tmp_path / "white.png")
    summary = write_predictions(
        segmenter, [tmp_path / "white.png"], tmp_path / "out", overlays=False
    )
    (row,) = rows_of(tmp_path / "out")
    assert (row["is_empty"], row["area"], row["share"]) == ("1", "0", "0.0")
    assert row["centre_x"] == row["centre_y"] == row["confidence"] == ""
    assert not np.asarray(Image.open(tmp_path / "out/masks/white.png")).any()
    assert summary.empty == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["masks", "predictions.csv"]


def test_images_with_the_same_name_have_different_masks(segmenter, tmp_path):
    colours = {"a/x.png": "black", "b/x.png": "white", "b/x.jpg": "black"}
    for name, colour in colours.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), colour).save(tmp_path / name)
    write_predictions(segmenter, [tmp_path / name for name in colours], tmp_path / "out")
    rows = {r["file"]: r["mask"] for r in rows_of(tmp_path / "out")}
    assert len(set(rows.values())) == 3
    for name, colour in colours.items():
        mask = np.asarray(Image.open(tmp_path / "out" / rows[str(tmp_path / name)]))
        assert mask.all() == (colour == "black") and mask.any() == (colour == "black")
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 3


def test_unusable_images_are_reported_and_left_out(segmenter, pairs, tmp_path):
    images, masks = images_in(pairs), masks_in(pairs)
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[4].write_bytes(b"")
    Image.new("L", (5, 5)).save(masks[images[6]])
    images[8].unlink()  # after the images were listed
    messages = []
    summary = write_predictions(
        segmenter, images, tmp_path / "out", masks=masks, on_error=lambda e: messages.append(str(e))
    )
    assert (summary.images, summary.unusable) == (5, 4)
    reasons = ("damaged", "not an image", "5x5 pixels", "no such file")
    assert all(reason in line for reason, line in zip(reasons, messages, strict=True))
    assert all("\n" not in line for line in messages)
    kept = [p for i, p in enumerate(images) if i not in (1, 4, 6, 8)]
    assert [Path(r["file"]) for r in rows_of(tmp_path / "out")] == kept
    names = sorted(p.stem for p in (tmp_path / "out" / "masks").iterdir())
    assert names == [p.stem for p in kept]


def test_nothing_is_written_without_a_usable_image(segmenter, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(JobFailed, match="none of 1 images is usable"):
        write_predictions(segmenter, [tmp_path / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("at", ["PIL.Image.Image.save", "pathlib.Path.replace"])
def test_full_disk_leaves_no_partial_folder(segmenter, pairs, tmp_path, monkeypatch, at):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(at, full)
    with pytest.raises(JobFailed, match="cannot be written: No space left on device"):
        write_predictions(segmenter, images_in(pairs), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cwd", "data"]


def test_interrupt_leaves_no_partial_folder(segmenter, pairs, tmp_path, monkeypatch):
    def slowly(*args):
        time.sleep(0.05)  # so that threads still draw when the interrupt comes
        return draw_outlines(*args)

    monkeypatch.setattr("search.results.predict.draw_outlines", slowly)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(segmenter, images_in(pairs), tmp_path / "out", on_image=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cwd", "data"]


def occupy(out):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (occupy, "is not empty; give a new folder"),
        (lambda out: out.write_text("x"), r"cannot be made: .*/out is a file"),
    ],
)
def test_existing_files_are_not_changed(segmenter, pairs, tmp_path, prepare, message):
    prepare(tmp_path / "out")
    before = {p: p.is_file() and p.read_text() for p in tmp_path.rglob("*out*/**")}
    with pytest.raises(InputError, match=message):
        write_predictions(segmenter, images_in(pairs), tmp_path / "out")
    assert {p: p.is_file() and p.read_text() for p in tmp_path.rglob("*out*/**")} == before


def test_an_empty_folder_is_accepted(segmenter, pairs, tmp_path):
    (tmp_path / "out").mkdir()
    assert write_predictions(segmenter, images_in(pairs), tmp_path / "out").images == 9


def test_unusual_file_names_can_be_read_from_the_table(segmenter, tmp_path):
    names = ["a,b\n'\"c.png", os.fsdecode(b"caf\xe9.png"), "Ünïcödé 😀.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    write_predictions(segmenter, [tmp_path / n for n in names], tmp_path / "out")
    with (tmp_path / "out/predictions.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        rows = list(csv.DictReader(file))
    assert [Path(r["file"]).name for r in rows] == names
    assert all((tmp_path / "out" / r["mask"]).is_file() for r in rows)


# --- the command -------------------------------------------------------------------------------


def test_command_predicts_a_folder_and_prints_dice(run, pairs, tmp_path):
    out = tmp_path / "out"
    code, output, errors = invoke(
        "predict", run, pairs / "images", "--out", out, "--masks", pairs / "masks"
    )
    assert (code, errors) == (0, [])
    dice = np.mean([float(r["dice"]) for r in rows_of(out)])
    assert output == [
        f"9 images in {out}: masks/ and predictions.csv; 0 without a lesion",
        f"Dice {dice:.4f}, mean over 9 images",
    ]
    assert len(list((out / "overlays").iterdir())) == 9


def test_command_reports_unusable_files_and_exits_with_1(run, pairs, tmp_path):
    bad = images_in(pairs)[2]
    bad.write_bytes(b"no picture")
    code, output, errors = invoke(
        "predict", run, pairs / "images", "--out", tmp_path / "o", "--no-overlays"
    )
    assert code == 1
    assert output[0].startswith("8 images in")
    assert errors[0].startswith(f"lesionsearch: {bad}: not an image")
    assert errors[1:] == ["lesionsearch: predict: 1 of 9 images are unusable, see above"]
    assert len(rows_of(tmp_path / "o")) == 8
    assert not (tmp_path / "o" / "overlays").exists()


def test_an_ensemble_writes_disagreement_and_uncertainty(pairs, tmp_path):
    whole, singles = write_ensemble(tmp_path)
    options = ("--masks", pairs / "masks", "--uncertainty", "--no-overlays")
    out = tmp_path / "out"
    code, _, errors = invoke("predict", whole, pairs / "images", "--out", out, *options)
    assert (code, errors) == (0, [])
    rows, model = rows_of(out), lesionseg.load(whole, "cpu")
    assert list(rows[0])[-3:] == ["has_several_lesions", "disagreement", "dice"]
    assert sorted(p.name for p in out.iterdir()) == ["masks", "predictions.csv", "uncertainty"]
    for row in rows:
        prediction = model.predict(row["file"])
        assert float(row["disagreement"]) == pytest.approx(prediction.disagreement, abs=1e-6)
        with Image.open(out / "uncertainty" / Path(row["mask"]).name) as stored:
            assert (stored.mode, stored.format) == ("L", "PNG")
            found = np.asarray(stored).astype(float)
        assert found.shape == prediction.mask.shape
        assert np.abs(found / 255 * 0.5 - prediction.uncertainty).max() < 0.5 / 255 / 2 + 1e-5
    assert found.max() > 0
    assert len({row["disagreement"] for row in rows}) > 1
    # A single network has neither.
    code, _, errors = invoke("predict", singles[0], pairs / "images", "--out", "o", *options)
    assert (code, len(errors)) == (2, 1) and "--uncertainty: needs an ensemble" in errors[0]
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "nowhere", "--out", "o"], "nowhere: no such file or folder"),
        (["nowhere", "IMAGES", "--out", "o"], "no model or study 'nowhere': looked in nowhere and"),
        (["x" * 300, "IMAGES", "--out", "o"], "no model or study 'xxx"),
        (["RUN", "x" * 300, "--out", "o"], "no such file or folder"),
        (["RUN", "IMAGES", "--out", "x" * 300], "cannot be made: File name too long"),
        (["RUN", "IMAGES", "--out", "o", "--masks", "x" * 300], "no such folder"),
        (["RUN", "IMAGES", "--out", "IMAGES"], "is not empty; give a new folder"),
        (["RUN", "IMAGES", "--out", "o", "--masks", "no"], "--masks: no: no such folder"),
        (["RUN", "IMAGES"], "Missing option '--out'"),
        (["RUN", "IMAGES", "--out", "o", "--device", "cuda:99"], "'cuda:99' is not available"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, pairs, words, message):
    words = [{"RUN": run, "IMAGES": pairs / "images"}.get(w, w) for w in words]
    code, output, errors = invoke("predict", *words)
    assert (code, output, len(errors)) == (2, [], 1)
    assert message in errors[0]
    assert not Path("o").exists() and not list(Path().glob(".o*"))


def test_decompression_bomb_is_refused_by_its_header(run, tmp_path):
    path = tmp_path / "bomb.bmp"
    Image.new("RGB", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (40_000).to_bytes(4, "little") * 2  # width and height
    path.write_bytes(content)
    code, _, errors = invoke("predict", run, path, "--out", "o")
    assert (code, len(errors)) == (1, 2)
    assert errors[0] == (
        f"lesionsearch: {path}: the image has more than 179 million pixels; scale it down"
    )
    assert not Path("o").exists()


@pytest.mark.slow
def test_memory_of_two_large_images_is_that_of_one(run, tmp_path):
    """Two of 12,000 x 9,000 pixels, in a process of its own; nothing is printed to stderr."""
    Image.new("L", (12_000, 9_000), 40).save(tmp_path / "large.png", compress_level=1)
    Image.new("L", (12_000, 9_000), 40).save(tmp_path / "large.jpg", quality=30)
    code = f"""
import resource, sys
import cli, lesionseg
lesionseg.load({str(run)!r})
import search.results.predict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.argv = ["lesionsearch", "predict", {str(run)!r}, {str(tmp_path / "large.*")!r}, "--out", "o"]
try:
    cli.app()
finally:
    print("KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=HERE)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(Path("o"))
    assert [(r["width"], r["height"], r["share"]) for r in rows] == [("12000", "9000", "1.0")] * 2
    # Its pixels as floats, its mask and its components: 9 bytes each, and something for the rest.
    assert int(done.stdout.split()[-1]) * 1024 < 18 * 12_000 * 9_000


def test_pickles_are_never_read(run, pairs, tmp_path):
    """Neither torch's nor Python's unpickler is called."""
    code = f"""
import pickle, sys, torch
def refuse(*a, **k): raise SystemExit("a pickle was opened")
torch.load = pickle.load = pickle.loads = pickle.Unpickler = refuse
import cli
sys.argv = ["lesionsearch", "predict", {str(run)!r}, {str(pairs / "images")!r}, "--out", "o"]
cli.app()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=HERE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows_of(Path("o"))) == 9


def test_study_under_runs_is_found_by_name_beside_images_of_that_name(run, pairs):
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(run)
    Path("mine").symlink_to(pairs)
    model, _ = predict.load_final_model("mine", "cpu", 1)
    assert model.config == CONFIG


def test_a_study_that_was_not_tested_is_named(run):
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/run.json").write_text("{}")
    code, _, errors = invoke("export", "mine")
    assert code == 2
    assert errors == [
        "lesionsearch: runs/mine: has no final/model.safetensors; `lesionsearch final` creates it "
        "after the search"
    ]


# --- real images -------------------------------------------------------------------------------


@pytest.mark.slow
def test_model_trained_on_isic_segments_ham10000(real_data, tmp_path):
    """Seconds of training on 64 pixels of 200 images; other cameras, another clinic."""
    from lesionseg.data.cache import build_cache
    from lesionseg.data.index import DatasetIndex
    from lesionseg.training.train import train
    from lesionseg.training.types import TrainData, TrainOptions

    found = DatasetIndex.read(real_data / "isic2018")
    index = DatasetIndex(found.root, found.layout, found.records[::10])
    cache = build_cache(index, 64)
    config = TrialConfig(
        model=ComponentConfig("unet", {"width": 8, "depth": 3}),
        optimizer=ComponentConfig("adamw", {"lr": 0.01}),
        image_size=64,
        epochs=8,
    )
    where = np.arange(len(index.records))
    path = tmp_path / "final" / "model.safetensors"
    data = TrainData(cache, where[:180], where[180:])
    train(config, data, options=TrainOptions(weights_path=path))
    images = sorted((real_data / "ham10000").glob("HAM10000_images_part_*/*.jpg"))[::3]
    masks = real_data / "ham10000" / "HAM10000_segmentations_lesion_tschandl"
    code, output, errors = invoke("predict", tmp_path, *images, "--out", "o", "--masks", masks)
    assert (code, errors) == (0, [])
    rows = rows_of(Path("o"))
    assert len(rows) == len(images) > 50
    assert all(r["dice"] for r in rows)
    assert len(list(Path("o/masks").iterdir())) == len(list(Path("o/overlays").iterdir()))
    dice = np.mean([float(r["dice"]) for r in rows])
    assert output[1] == f"Dice {dice:.4f}, mean over {len(images)} images"
    assert dice > 0.6
