"""Evaluation against masks whose counts are known by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.inference.evaluate import evaluate, predict_probabilities
from lesionseg.inference.postprocess import to_mask
from lesionseg.inference.selection import Inference
from lesionseg.space import ComponentConfig

CPU = torch.device("cpu")


class RedIsLesion(nn.Module):
    """Predicts lesion where the normalised red is high."""

    def forward(self, images):
        return images[:, :1] * 50


class Constant(nn.Module):
    """The same logit everywhere."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, images):
        return torch.full_like(images[:, :1], self.logit)


def data(root, shapes=((64, 96),), size=32):
    """Red upper halves on black; the masks say the same."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i, (height, width) in enumerate(shapes):
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 2] = 255
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = mask
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    index = DatasetIndex.read(root)
    return index.records, build_cache(index, size)


def test_images_are_evaluated_at_the_masks_own_size(tmp_path):
    shapes = ((64, 96), (40, 40), (128, 32))
    records, cache = data(tmp_path / "d", shapes)
    found = evaluate(RedIsLesion(), cache, records, device=CPU)
    assert found.shapes == shapes
    assert found.counts.sum(axis=1).tolist() == [h * w for h, w in shapes]
    assert found.scores["dice"] == pytest.approx([1.0, 1.0, 1.0], abs=0.03)


def test_counts_of_an_all_lesion_prediction(tmp_path):
    records, cache = data(tmp_path / "d")
    found = evaluate(Constant(9.0), cache, records, device=CPU)
    assert found.counts.tolist() == [[32 * 96, 32 * 96, 0, 0]]
    assert found.scores["dice"] == pytest.approx([2 / 3])


def test_counts_of_an_empty_prediction(tmp_path):
    records, cache = data(tmp_path / "d")
    found = evaluate(Constant(-9.0), cache, records, device=CPU)
    assert found.counts.tolist() == [[0, 0, 32 * 96, 32 * 96]]
    assert found.scores["dice"].tolist() == [0.0]


def test_rows_are_in_the_order_of_the_records(tmp_path):
    records, cache = data(tmp_path / "d", ((64, 96), (40, 40), (128, 32)))
    seen = []
    turned = tuple(reversed(records))
    found = evaluate(
        RedIsLesion(), cache, turned, device=CPU, on_image=lambda r, p, t: seen.append((r, p, t))
    )
    assert found.shapes == ((128, 32), (40, 40), (64, 96))
    assert [r for r, _, _ in seen] == list(turned)
    assert all(p.shape == t.shape == s for (_, p, t), s in zip(seen, found.shapes, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_are_probabilities_and_do_not_depend_on_the_batch(tmp_path, batch_size):
    _, cache = data(tmp_path / "d", ((64, 96), (40, 40), (128, 32)))
    found = list(
        predict_probabilities(
            RedIsLesion(), cache, np.array([2, 0, 1]), device=CPU, batch_size=batch_size
        )
    )
    alone = [
        next(predict_probabilities(RedIsLesion(), cache, np.array([i]), device=CPU))
        for i in (2, 0, 1)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))
    assert all(p.shape == (32, 32) and p.min() >= 0 and p.max() <= 1 for p in found)


def test_prediction_does_not_change_batch_norm(tmp_path):
    _, cache = data(tmp_path / "d")
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)).train()
    before = model[0].running_mean.clone()
    list(predict_probabilities(model, cache, np.array([0]), device=CPU))
    assert torch.equal(model[0].running_mean, before)


def test_probabilities_are_interpolated_before_thresholding():
    # One certain and one doubtful pixel: the middle between 1 and 0.2 is 0.6, lesion.
    row = to_mask((), np.array([[1.0, 0.2]], dtype=np.float32), (1, 4))
    # Linear, pixel centres at 0.5 and 1.5: values 1, 0.8, 0.4, 0.2.
    assert row.tolist() == [[True, True, False, False]]


def test_probability_of_one_half_is_background():
    assert not to_mask((), np.full((2, 2), 0.5, np.float32), (4, 4)).any()


# --- comparison with other libraries, sizes ------------------------------------------------------


class Known(nn.Module):
    """Returns given logits maps, one per image."""

    def __init__(self, maps):
        super().__init__()
        self.left = [torch.as_tensor(np.asarray(m), dtype=torch.float32)[None] for m in maps]

    def forward(self, images):
        return torch.stack([self.left.pop(0) for _ in images])


def columns(height, width, n):
    """A lesion in the first columns."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, :n] = 1
    return mask


def written(root, **masks):
    """A data set of those masks, cached at 16 x 16."""
    for name, mask in masks.items():
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*mask.shape, 3), 90, np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(mask * 255).save(root / f"masks/{name}.png")
    index = DatasetIndex.read(root)
    return index.records, build_cache(index, 16)


def sure(n):
    """Logits of a lesion in the first of 16 columns."""
    return columns(16, 16, n) * 40.0 - 20.0


def test_counts_of_known_predictions_at_four_sizes(tmp_path):
    records, cache = written(
        tmp_path / "d",
        a=columns(32, 64, 32),
        b=columns(64, 32, 4),
        c=columns(10, 20, 0),
        d=columns(16, 16, 16),
    )
    found = evaluate(Known([sure(8), sure(8), sure(0), sure(8)]), cache, records, device=CPU)
    # tp, fp, fn, tn
    expected = [[1024, 0, 0, 1024], [256, 768, 0, 1024], [0, 0, 0, 200], [128, 0, 128, 0]]
    assert found.counts.tolist() == expected
    assert found.counts.dtype == np.int64


def test_evaluation_uses_the_mask_file_not_the_cache(tmp_path):
    """A single pixel that is lost in the cache is counted."""
    mask = np.zeros((64, 64), np.uint8)
    mask[30, 30] = 1
    records, cache = written(tmp_path / "d", a=mask)
    assert not cache.masks.any()
    found = evaluate(Known([sure(0)]), cache, records, device=CPU)
    assert found.counts.tolist() == [[0, 0, 1, 4095]]


def test_scores_equal_scikit_learns_at_full_size(tiny_data):
    records = DatasetIndex.read(tiny_data).records
    cache = build_cache(DatasetIndex.read(tiny_data), 16)
    # The right answers, turned upside down: neither all right nor all wrong.
    answers = [cache.masks[i][::-1] * 40.0 - 20.0 for i in range(30)]
    shown = []
    found = evaluate(
        Known(answers), cache, records, device=CPU, on_image=lambda *a: shown.append(a)
    )
    assert len({round(d, 6) for d in found.scores["dice"]}) > 20
    for i, (record, predicted, truth) in enumerate(shown):
        assert np.array_equal(truth, np.asarray(Image.open(record.mask)) > 0)
        for name, judge in (("dice", f1_score), ("accuracy", accuracy_score)):
            expected = judge(truth.ravel(), predicted.ravel())
            assert found.scores[name][i] == pytest.approx(expected)


def test_a_probability_is_the_sigmoid_of_the_logit(tiny_data):
    cache = build_cache(DatasetIndex.read(tiny_data), 16)
    maps = [np.full((16, 16), z) for z in (-1e4, -1.0, 0.0, 2.0)]
    given = list(predict_probabilities(Known(maps), cache, np.arange(4), device=CPU))
    expected = [0.0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2))]
    assert [float(p.max()) for p in given] == pytest.approx(expected)
    assert [float(p.min()) for p in given] == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(16, 16), (23, 41), (64, 20), (7, 5), (1, 1)])
def test_interpolation_equals_torchs(shape):
    probability = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    soft = nn.functional.interpolate(
        torch.from_numpy(probability)[None, None], shape, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    mask = to_mask((), probability, shape)
    assert mask.shape == shape and mask.dtype == bool
    certain = np.abs(soft - 0.5) > 1e-3
    assert np.array_equal(mask[certain], soft[certain] > 0.5)


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_straight_edge_keeps_its_position(factor):
    mask = to_mask((), columns(16, 16, 4).astype(np.float32), (16 * factor, 16 * factor))
    assert np.array_equal(mask, columns(16 * factor, 16 * factor, 4 * factor))


# --- inference settings, distances and histograms ------------------------------------------------


class Leftmost(nn.Module):
    """Depends on the column, so that a flip changes the output."""

    def forward(self, images):
        n, _, height, width = images.shape
        ramp = torch.linspace(6, -6, width).expand(n, 1, height, width)
        return ramp.clone()


def test_tta_averages_the_flipped_image(tmp_path):
    _, cache = data(tmp_path / "d")
    members = np.array([0])
    plain = next(predict_probabilities(Leftmost(), cache, members, device=CPU))
    flips = next(
        predict_probabilities(Leftmost(), cache, members, device=CPU, inference=Inference("flips"))
    )
    assert np.allclose(flips, (plain + plain[:, ::-1]) / 2, atol=1e-6)
    assert not np.allclose(flips, plain, atol=0.1)


def test_chain_is_applied(tmp_path):
    records, cache = data(tmp_path / "d")
    strict = Inference(chain=(ComponentConfig("threshold", {"value": 0.9}),))
    # A logit of 1 is a probability of 0.73.
    assert evaluate(Constant(1.0), cache, records, device=CPU).scores["recall"].tolist() == [1.0]
    found = evaluate(Constant(1.0), cache, records, device=CPU, inference=strict)
    assert found.scores["recall"].tolist() == [0.0]


def test_distances_are_in_pixels_of_the_mask_and_in_percent_of_its_diagonal(tmp_path):
    records, cache = written(tmp_path / "d", a=columns(48, 64, 16), b=columns(32, 32, 0))
    found = evaluate(Known([sure(8), sure(0)]), cache, records, device=CPU)
    # Half of 64 columns instead of a quarter: the far edge lies 16 pixels off.
    assert found.distances["hd"].tolist() == [16.0, 0.0]
    assert found.distances["hd_percent"].tolist() == [16.0 / 80 * 100, 0.0]
    assert found.distances.keys() == {
        f"{name}{unit}" for name in ("assd", "hd", "hd95") for unit in ("", "_percent")
    }


def test_histograms_count_every_pixel_once(tmp_path):
    shapes = ((64, 96), (40, 40))
    records, cache = data(tmp_path / "d", shapes)
    found = evaluate(RedIsLesion(), cache, records, device=CPU)
    assert found.histograms.sum(axis=(1, 2)).tolist() == [64 * 96, 40 * 40]
    assert found.histograms[:, 1].sum(axis=1).tolist() == [32 * 96, 20 * 40]
    middle = found.histograms.shape[2] // 2
    # Skin below one half, lesion above, but for the row at the edge.
    assert found.histograms[0, 1, middle:].sum() >= 30 * 96
    assert found.histograms[0, 0, :middle].sum() >= 30 * 96


@pytest.mark.slow
def test_parallel_evaluation_prints_nothing(tmp_path):
    """In a process of its own, because pytest captures the output of this one."""
    data(tmp_path / "d", ((64, 96),) * 40)
    code = """
import sys
from pathlib import Path
import torch
from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.inference.evaluate import evaluate
torch.set_num_threads(4)
index = DatasetIndex.read(Path(sys.argv[1]))
network = torch.nn.Conv2d(3, 1, 1)
cache = build_cache(index, 32)
print(len(evaluate(network, cache, index.records, device=torch.device("cpu")).counts))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("40\n", "")
