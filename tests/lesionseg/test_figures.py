"""Overlays: which images, and where the outlines are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg import figures
from lesionseg.evaluate import evaluate
from tests.lesionseg.test_evaluate import RedIsLesion, data


@pytest.mark.parametrize("n", range(1, 13))
def test_best_median_and_worst_never_show_an_image_twice(n):
    dice = np.random.default_rng(n).permutation(n) / 12
    chosen = figures.telling(dice)
    shown = [i for members in chosen.values() for i in members]
    assert len(shown) == len(set(shown)) == min(n, 9)
    assert chosen["best"][0] == int(np.argmax(dice))
    if n > 3:
        assert chosen["worst"][0] == int(np.argmin(dice))


def test_of_nine_images_each_is_shown_where_it_belongs():
    dice = np.array([0.5, 0.9, 0.1, 0.7, 0.3, 0.8, 0.2, 0.6, 0.4])
    assert figures.telling(dice) == {"best": [1, 5, 3], "median": [7, 0, 8], "worst": [2, 6, 4]}


def test_outlines_lie_on_the_masks_edges_in_their_colours():
    image = np.full((60, 80, 3), 128, np.uint8)
    truth, predicted = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    truth[10:30, 10:30] = True
    predicted[35:55, 45:70] = True
    drawn = figures.overlay(image, truth, predicted)
    assert drawn.shape == image.shape
    assert tuple(drawn[10, 20]) == figures.TRUE_COLOUR
    assert tuple(drawn[54, 57]) == figures.PREDICTED_COLOUR
    assert tuple(drawn[20, 20]) == tuple(drawn[3, 3]) == (128, 128, 128)
    assert (image == 128).all()  # the picture that was given is left alone


@pytest.mark.parametrize("masks", [np.zeros((40, 40), bool), np.ones((40, 40), bool)])
def test_empty_and_full_masks_can_be_drawn(masks):
    drawn = figures.overlay(np.zeros((40, 40, 3), np.uint8), masks, masks)
    assert drawn.any() == masks.any()


def test_large_images_are_scaled_down_and_keep_their_shape():
    mask = np.zeros((600, 960), bool)
    drawn = figures.overlay(np.zeros((600, 960, 3), np.uint8), mask, mask)
    assert drawn.shape == (300, 480, 3)


def test_written_overlays_are_listed_in_the_order_shown(tmp_path):
    records, cache = data(tmp_path / "d", ((64, 96), (40, 40), (128, 32), (20, 20)))
    cpu = torch.device("cpu")
    found = evaluate(RedIsLesion(), cache, records, device=cpu)
    drawn = figures.draw_overlays(RedIsLesion(), cache, found, tmp_path / "o", cpu)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(name for _, name in drawn)
    assert [kind for kind, _ in drawn[:3]] == ["best"] * 3
    assert [name.split("_")[1] for _, name in drawn[:3]] == ["1", "2", "3"]
    assert {name.rsplit("_", 1)[1] for _, name in drawn} == {f"{r.name}.png" for r in records}
    assert all(Image.open(tmp_path / "o" / name).mode == "RGB" for _, name in drawn)
