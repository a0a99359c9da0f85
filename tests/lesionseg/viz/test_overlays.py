"""Overlays: which images, and where the outlines are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg.inference.evaluate import evaluate
from lesionseg.runtime.files import file_stem
from lesionseg.viz import overlays
from tests.lesionseg.inference.test_evaluate import RedIsLesion, data


@pytest.mark.parametrize("n", range(1, 13))
def test_each_image_is_selected_once(n):
    dice = np.random.default_rng(n).permutation(n) / 12
    chosen = overlays.select_examples(dice)
    shown = [i for members in chosen.values() for i in members]
    assert len(shown) == len(set(shown)) == min(n, 9)
    assert chosen["best"][0] == int(np.argmax(dice))
    if n > 3:
        assert chosen["worst"][0] == int(np.argmin(dice))


def test_selection_of_nine_images():
    dice = np.array([0.5, 0.9, 0.1, 0.7, 0.3, 0.8, 0.2, 0.6, 0.4])
    assert overlays.select_examples(dice) == {
        "best": [1, 5, 3],
        "median": [7, 0, 8],
        "worst": [2, 6, 4],
    }


def test_position_and_colour_of_outlines():
    image = np.full((60, 80, 3), 128, np.uint8)
    truth, predicted = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    truth[10:30, 10:30] = True
    predicted[35:55, 45:70] = True
    canvas = overlays.draw_outlines(image, truth, predicted)
    assert canvas.shape == image.shape
    assert tuple(canvas[10, 20]) == overlays.TRUE_COLOUR
    assert tuple(canvas[54, 57]) == overlays.PREDICTED_COLOUR
    assert tuple(canvas[20, 20]) == tuple(canvas[3, 3]) == (128, 128, 128)
    assert (image == 128).all()  # the picture that was given is left alone


@pytest.mark.parametrize("masks", [np.zeros((40, 40), bool), np.ones((40, 40), bool)])
def test_empty_and_full_masks_can_be_drawn(masks):
    canvas = overlays.draw_outlines(np.zeros((40, 40, 3), np.uint8), masks, masks)
    assert canvas.any() == masks.any()


def test_large_images_are_scaled_down_and_keep_their_shape():
    mask = np.zeros((600, 960), bool)
    canvas = overlays.draw_outlines(np.zeros((600, 960, 3), np.uint8), mask, mask)
    assert canvas.shape == (300, 480, 3)


def test_written_overlays_are_listed_in_the_order_shown(tmp_path):
    records, cache = data(tmp_path / "d", ((64, 96), (40, 40), (128, 32), (20, 20)))
    cpu = torch.device("cpu")
    found = evaluate(RedIsLesion(), cache, records, device=cpu)
    canvas = overlays.write_overlays(RedIsLesion(), cache, found, tmp_path / "o", cpu)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(name for _, name in canvas)
    assert [kind for kind, _ in canvas[:3]] == ["best"] * 3
    assert [name.split("_")[1] for _, name in canvas[:3]] == ["1", "2", "3"]
    assert {name.rsplit("_", 1)[1] for _, name in canvas} == {f"{r.name}.png" for r in records}
    assert all(Image.open(tmp_path / "o" / name).mode == "RGB" for _, name in canvas)


def test_overlays_of_the_longest_names_can_be_written(tmp_path):
    records, cache = data(tmp_path / "d", ((20, 20), (20, 20)))
    names = ["a" * 250 + "1", "ä" * 125]
    records = [replace(record, name=name) for record, name in zip(records, names, strict=True)]
    cache.names = names
    cpu = torch.device("cpu")
    found = evaluate(RedIsLesion(), cache, records, device=cpu)
    written = overlays.write_overlays(RedIsLesion(), cache, found, tmp_path / "o", cpu)
    files = [f"best_{rank}_{file_stem(name)}.png" for rank, name in enumerate(names, 1)]
    assert [file for _, file in written] == files
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(files)


def test_outlines_of_a_reduced_image():
    """Four times too large: an edge at pixel 400 is canvas at pixel 100."""
    truth, predicted = np.zeros((1440, 1920), bool), np.zeros((1440, 1920), bool)
    truth[400:800, 400:800] = True
    predicted[400:800, 1200:1600] = True
    canvas = overlays.draw_outlines(np.full((1440, 1920, 3), 128, np.uint8), truth, predicted)
    assert canvas.shape == (360, 480, 3)
    for colour, left in ((overlays.TRUE_COLOUR, 100), (overlays.PREDICTED_COLOUR, 300)):
        rows, columns = np.nonzero(
            (canvas == colour).all(axis=2) & (np.arange(480) // 240 == left // 240)
        )
        assert abs(rows.min() - 100) <= 1 and abs(rows.max() - 199) <= 1
        assert abs(columns.min() - left) <= 1 and abs(columns.max() - left - 99) <= 1
        assert tuple(canvas[150, left + 50]) == (128, 128, 128)


def test_the_predicted_outline_is_on_top():
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    canvas = overlays.draw_outlines(np.zeros((40, 40, 3), np.uint8), mask, mask)
    assert tuple(canvas[10, 20]) == overlays.PREDICTED_COLOUR
    assert not (canvas == overlays.TRUE_COLOUR).all(axis=2).any()


def test_every_lesion_of_a_mask_is_outlined():
    truth = np.zeros((60, 80), bool)
    truth[5:20, 5:20] = truth[35:50, 50:70] = True
    canvas = overlays.draw_outlines(
        np.zeros((60, 80, 3), np.uint8), truth, np.zeros((60, 80), bool)
    )
    assert tuple(canvas[5, 12]) == tuple(canvas[49, 60]) == overlays.TRUE_COLOUR


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (480, 480), (481, 3)])
def test_any_aspect_ratio(shape):
    mask = np.ones(shape, bool)
    canvas = overlays.draw_outlines(np.zeros((*shape, 3), np.uint8), mask, ~mask)
    assert max(canvas.shape) <= 480 and min(canvas.shape) >= 1
    assert canvas.any()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, ([0], [], [])),
        (2, ([0, 1], [], [])),
        (3, ([0, 1, 2], [], [])),
        (4, ([0, 1, 2], [], [3])),
        (5, ([0, 1, 2], [], [4, 3])),
        (7, ([0, 1, 2], [3], [6, 5, 4])),
        (12, ([0, 1, 2], [5, 6, 7], [11, 10, 9])),
    ],
)
def test_selection_of_few_images(n, expected):
    """Images in falling order of Dice."""
    chosen = overlays.select_examples(np.linspace(1, 0, n))
    assert tuple(chosen.values()) == expected
    assert list(chosen) == ["best", "median", "worst"]


def test_images_of_equal_dice_keep_their_order():
    assert overlays.select_examples(np.full(9, 0.5)) == {
        "best": [0, 1, 2],
        "median": [3, 4, 5],
        "worst": [8, 7, 6],
    }
