"""Evaluation against masks whose counts are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lesionseg.data.cache import build_cache
from lesionseg.data.index import DatasetIndex
from lesionseg.evaluate import evaluate, predict, to_mask

CPU = torch.device("cpu")


class RedIsLesion(nn.Module):
    """Knows the answer: a pixel is lesion where its normalised red is high."""

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


def test_every_image_is_judged_at_its_masks_own_size(tmp_path):
    shapes = ((64, 96), (40, 40), (128, 32))
    records, cache = data(tmp_path / "d", shapes)
    found = evaluate(RedIsLesion(), cache, records, device=CPU)
    assert found.shapes == shapes
    assert found.counts.sum(axis=1).tolist() == [h * w for h, w in shapes]
    assert found.scores["dice"] == pytest.approx([1.0, 1.0, 1.0], abs=0.03)


def test_counts_of_a_network_that_says_lesion_everywhere(tmp_path):
    records, cache = data(tmp_path / "d")
    found = evaluate(Constant(9.0), cache, records, device=CPU)
    assert found.counts.tolist() == [[32 * 96, 32 * 96, 0, 0]]
    assert found.scores["dice"] == pytest.approx([2 / 3])


def test_counts_of_a_network_that_finds_nothing(tmp_path):
    records, cache = data(tmp_path / "d")
    found = evaluate(Constant(-9.0), cache, records, device=CPU)
    assert found.counts.tolist() == [[0, 0, 32 * 96, 32 * 96]]
    assert found.scores["dice"].tolist() == [0.0]


def test_rows_keep_the_records_order_whatever_the_caches(tmp_path):
    records, cache = data(tmp_path / "d", ((64, 96), (40, 40), (128, 32)))
    seen = []
    turned = tuple(reversed(records))
    found = evaluate(
        RedIsLesion(), cache, turned, device=CPU, on_image=lambda r, p, t: seen.append((r, p, t))
    )
    assert found.shapes == ((128, 32), (40, 40), (64, 96))
    assert [r for r, _, _ in seen] == list(turned)
    assert all(p.shape == t.shape == s for (_, p, t), s in zip(seen, found.shapes, strict=True))


def test_no_records_give_no_rows(tmp_path):
    _, cache = data(tmp_path / "d")
    assert evaluate(RedIsLesion(), cache, (), device=CPU).counts.shape == (0, 4)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_are_probabilities_and_do_not_depend_on_the_batch(tmp_path, batch_size):
    _, cache = data(tmp_path / "d", ((64, 96), (40, 40), (128, 32)))
    found = list(
        predict(RedIsLesion(), cache, np.array([2, 0, 1]), device=CPU, batch_size=batch_size)
    )
    alone = [next(predict(RedIsLesion(), cache, np.array([i]), device=CPU)) for i in (2, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))
    assert all(p.shape == (32, 32) and p.min() >= 0 and p.max() <= 1 for p in found)


def test_predicting_leaves_batch_norm_as_it_was(tmp_path):
    _, cache = data(tmp_path / "d")
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)).train()
    before = model[0].running_mean.clone()
    list(predict(model, cache, np.array([0]), device=CPU))
    assert torch.equal(model[0].running_mean, before)


def test_probabilities_are_interpolated_before_they_are_cut():
    # One certain and one doubtful pixel: the middle between 1 and 0.2 is 0.6, lesion.
    row = to_mask(np.array([[1.0, 0.2]], dtype=np.float32), (1, 4))
    # Linear, pixel centres at 0.5 and 1.5: values 1, 0.8, 0.4, 0.2.
    assert row.tolist() == [[True, True, False, False]]


def test_a_probability_of_exactly_one_half_is_skin():
    assert not to_mask(np.full((2, 2), 0.5, np.float32), (4, 4)).any()
